"""Capture: one torch.export graph of the model, with the model's own tensor names.

Sources: QADG of arXiv:2502.16638 traces the network once; here torch.export gives the trace and its signature the
names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

from geta_core.errors import GetaError
from geta_core.graph.composites import write_out
from geta_core.graph.inline import inline_regions


@dataclass(frozen=True)
class ExampleInputs:
    """Positional and keyword inputs of one forward pass; every tensor's first dimension is the batch (>= 2)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def of(value: Any) -> ExampleInputs:
        """Accept a tensor, a tuple or list of positional inputs, or a mapping of keyword inputs.

        Raises:
            GetaError: if there is no tensor, or a batch is smaller than 2.
        """
        if isinstance(value, ExampleInputs):
            return value
        if isinstance(value, Tensor):
            inputs = ExampleInputs((value,), {})
        elif isinstance(value, Mapping):
            inputs = ExampleInputs((), dict(value))
        elif isinstance(value, (tuple, list)):
            inputs = ExampleInputs(tuple(value), {})
        else:
            raise GetaError(f"example_inputs must be a tensor, a tuple or a dict, but got {type(value).__name__}")
        tensors = [leaf for leaf in inputs.leaves() if isinstance(leaf, Tensor) and leaf.dim() > 0]
        if not tensors:
            raise GetaError("example_inputs must hold at least one tensor with a batch dimension")
        small = [tuple(t.shape) for t in tensors if t.shape[0] < 2]
        if small and len(small) == len(tensors):
            raise GetaError(f"example_inputs must have a batch of at least 2, but got shapes {small}")
        seen: set[int] = set()

        def own(tensor: Tensor) -> Tensor:
            """torch.export takes a tensor that stands in two places for one input: each place gets its own."""
            copied = tensor.clone() if id(tensor) in seen else tensor
            seen.add(id(tensor))
            return copied

        return inputs.map(own)

    def leaves(self) -> Iterator[Any]:
        """Every leaf of the nested inputs, in order."""
        yield from torch.utils._pytree.tree_leaves((self.args, self.kwargs))

    def map(self, function: Any) -> ExampleInputs:
        """Apply ``function`` to every tensor and keep everything else."""
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return ExampleInputs(args, kwargs)

    def run(self, model: nn.Module) -> Any:
        """Call the model."""
        return model(*self.args, **self.kwargs)


@dataclass
class Capture:
    """One exported graph and the tensors behind its placeholders."""

    program: ExportedProgram
    names: dict[fx.Node, str]
    """Public name of the tensor behind a parameter, buffer or constant placeholder (tied tensors share one)."""
    tensors: dict[str, Tensor]
    """The live tensor behind each public name."""
    parameters: frozenset[str]
    """The public names that are parameters; the others are buffers or constants."""
    inputs: frozenset[fx.Node]
    """Placeholders of the user's inputs."""
    data: set[fx.Node] = field(default_factory=set)
    """Nodes whose value depends on a user input."""

    @property
    def graph(self) -> fx.Graph:
        """The captured graph."""
        graph: fx.Graph = self.program.graph_module.graph
        return graph


def public_names(model: nn.Module) -> dict[int, str]:
    """Map id(tensor) to its first public name: ``conv.weight`` also where a parametrization holds the original."""
    names: dict[int, str] = {}
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, entry in cast(nn.ModuleDict, module.parametrizations).items():
                original = getattr(entry, "original", None)
                if isinstance(original, Tensor):
                    names.setdefault(id(original), f"{prefix}.{name}" if prefix else name)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        names.setdefault(id(tensor), name)
    return names


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Give every module the mode back that it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def forget_(model: nn.Module) -> None:
    """Let modules drop what they keep of earlier forwards in eval mode, which is what their ``train()`` is for.

    A tensor made of parameters and kept aside would be a constant of the next graph, and stay as large as it is when
    its parameters are cut. Every mode is as before.
    """
    with restored_modes(model), suppress(NotImplementedError):  # modules of torch.export may have no train()
        model.train()
        model.eval()


@contextmanager
def traced_anew(model: nn.Module) -> Iterator[None]:
    """Trace inside with nothing kept of earlier forwards; nothing of the trace is kept either."""
    forget_(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
            yield
    finally:
        forget_(model)


def capture(model: nn.Module, inputs: ExampleInputs) -> Capture:
    """Export the model in eval mode with static shapes; the model's mode is restored.

    Raises:
        GetaError: if the forward fails on the example, or torch.export cannot trace it.
    """
    return read(model, exported(model, inputs))


def exported(model: nn.Module, inputs: ExampleInputs) -> ExportedProgram:
    """torch.export's own part of ``capture``."""
    with restored_modes(model):
        model.eval()
        try:
            with torch.no_grad():
                inputs.run(model)
        except Exception as error:
            raise GetaError(f"the model's forward fails on the example inputs: {first_line(error)}") from error
        try:
            with traced_anew(model):
                return torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
        except Exception as error:
            raise GetaError(
                f"torch.export cannot trace the model: {first_line(error)}; a forward must not branch on values of "
                "tensors or turn them into Python numbers (use torch.where, masks, or a sub-module that is prepared "
                "by itself)"
            ) from error


def read(model: nn.Module, program: ExportedProgram) -> Capture:
    """The other part: regions and composite operations are written out, tensors get the model's names."""
    inline_regions(program)
    write_out(program)
    program.graph_module.graph.eliminate_dead_code()
    return _named(model, program)


def first_line(error: BaseException) -> str:
    """Type and first line of an error's text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def resolve(model: nn.Module, path: str) -> Tensor:
    """The tensor at a dotted attribute path."""
    owner, _, leaf = path.rpartition(".")
    return cast(Tensor, getattr(model.get_submodule(owner), leaf))


def _named(model: nn.Module, program: ExportedProgram) -> Capture:
    signature, names_by_id = program.graph_signature, public_names(model)
    of_parameters = dict(signature.inputs_to_parameters)  # a property that builds its table anew each time
    held: dict[str, str] = {**of_parameters, **signature.inputs_to_buffers}
    constants = dict(signature.inputs_to_lifted_tensor_constants)
    names: dict[fx.Node, str] = {}
    tensors: dict[str, Tensor] = {}
    parameters: set[str] = set()
    inputs: set[fx.Node] = set()
    for node in program.graph_module.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in held:
            tensor = resolve(model, held[node.name])
            name = names_by_id.get(id(tensor), held[node.name])
            if node.name in of_parameters:
                parameters.add(name)
        elif node.name in constants:
            name = constants[node.name]
            tensor = cast(Tensor, program.constants[name])
        else:
            inputs.add(node)
            continue
        names[node], tensors[name] = name, tensor
    captured = Capture(program, names, tensors, frozenset(parameters), frozenset(inputs))
    for node in program.graph_module.graph.nodes:
        if node in inputs or any(source in captured.data for source in node.all_input_nodes):
            captured.data.add(node)
    return captured


def where(node: fx.Node) -> str:
    """Module path, operation and source line of a node, for messages."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = (stack[-1][0] if stack else "") or "the top level"
    return f"{path} ({node.target})"


def source_line(node: fx.Node) -> str:
    """The user's source line that made the node."""
    trace = str(node.meta.get("stack_trace", "")).strip().splitlines()
    return " ".join(part.strip() for part in trace[-2:]) or "source line unknown"
