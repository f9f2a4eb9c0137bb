"""Slimming on the exported graph: parameters are cut, and sizes that the graph holds as numbers are rewritten."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from geta_core.copying import copied
from geta_core.errors import GetaError, PruningError
from geta_core.graph.capture import Capture, ExampleInputs, _named, first_line, restored_modes, traced_anew
from geta_core.graph.inline import inline_regions
from geta_core.quantize import Quantizer
from geta_core.slim.cut import Keep, cut_
from geta_core.slim.modes import switch
from geta_core.slim.rewriting import rewrite

aten = torch.ops.aten

SAME_GRAPH = 100.0
"""Largest difference of a graph from the model that it was traced from, in units of the model's precision and relative
to the largest output: the same operations run in both, some of them (attention) by another kernel."""

CLOSE_64 = 1e-11
"""Difference up to which the traced graph is taken for the model's own in float64; the proof allows 1e-10."""
SAME_GRADIENT = 1e-6
"""Difference, relative to the largest element of a gradient, up to which a function's own backward pass is taken for
its derivative; such passes are written for single precision, with constants of eight digits."""


def export_switchable(
    model: nn.Module, inputs: ExampleInputs, *, train: bool = True, told: bool = True
) -> tuple[fx.GraphModule, Capture]:
    """Export in train mode with a dynamic batch; the result follows ``train()`` / ``eval()`` and has the model's names.

    The parameters are shared with ``model``, whose mode is restored. With ``train=False`` it is the graph of eval mode.
    With ``told=False`` the forward is not told that it is being exported (``torch.compiler.is_exporting``).

    Raises:
        GetaError: if torch.export cannot trace the model so.
    """
    with restored_modes(model), traced_anew(model):
        model.train(train)
        with nullcontext() if told else _untold(model):
            program = _dynamic_export(model, inputs)
    inline_regions(program)
    program.graph_module.graph.eliminate_dead_code(is_impure_node=lambda node: _writes(node))
    module = program.module(check_guards=False)
    for path in program.graph_signature.lifted_tensor_constants:
        _hold(module, path)
    return module, _named(model, program)


@contextmanager
def _untold(model: nn.Module) -> Iterator[None]:
    """While the model's forward runs, torch says that nothing is being exported; quantizers are told, as ever."""
    before: list[bool] = []

    def entering(told: bool) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            before.append(torch.compiler._is_exporting_flag)
            torch.compiler._is_exporting_flag = told

        return enter

    def leave(*_: Any) -> None:
        torch.compiler._is_exporting_flag = before.pop()

    hooks = []
    for module in (model, *(module for module in model.modules() if isinstance(module, Quantizer))):
        hooks.append(module.register_forward_pre_hook(entering(module is not model)))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _custom_backward() -> Iterator[set[str]]:
    """Collects the functions with a backward pass of their own that run inside; torch.export inlines their forward.

    Those of custom operators are left out: such an operator stays in the graph, and its backward pass with it.
    """
    found: set[str] = set()
    inherited = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if sys.modules.get(cls.__module__) is not torch._library.autograd:
            found.add(cls.__qualname__)
        return inherited.__get__(None, cls)(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment,method-assign]
    try:
        yield found
    finally:
        torch.autograd.Function.apply = inherited  # type: ignore[method-assign]


def _hold(module: nn.Module, path: str) -> None:
    """Make a constant of the traced code a buffer, so that it is cut, moved and stored like one."""
    owner = module.get_submodule(path.rpartition(".")[0])
    leaf = path.rpartition(".")[2]
    if leaf not in owner._buffers:
        value = owner.__dict__.pop(leaf)
        owner.register_buffer(leaf, value, persistent=False)


def _writes(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def _dynamic_export(model: nn.Module, inputs: ExampleInputs) -> torch.export.ExportedProgram:
    batch = batch_size(inputs)

    shapes: Any = torch.export.ShapesCollection()
    for value in inputs.leaves():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch:
            shapes[value] = {0: torch.export.Dim.AUTO}
    try:
        return torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        mode = "train" if model.training else "eval"
        raise GetaError(f"torch.export cannot trace the model in {mode} mode: {first_line(error)}") from error


def batch_size(inputs: ExampleInputs) -> int:
    """First dimension of the first tensor."""
    return int(next(leaf.shape[0] for leaf in inputs.leaves() if isinstance(leaf, Tensor) and leaf.dim() > 0))


def slim_graph(model: nn.Module, inputs: ExampleInputs, keep: Keep, heads: str) -> tuple[fx.GraphModule, str]:
    """A graph module with smaller parameters that computes what ``model`` computes with the cut indices at zero.

    Args:
        model: a model without parametrizations; it is not changed.
        inputs: example inputs in the model's dtype.
        keep: indices that stay.
        heads: how attention is pruned, as in the configuration that ``keep`` was chosen with.

    Returns:
        The module, and why its train mode is that of ``eval()`` (but for normalizations); empty if it is the model's.

    Raises:
        PruningError: if a number in the graph cannot follow the cut, if the model's own backward pass would be lost, or
            if no graph computes what the model computes.
    """
    try:
        module, captured, refusal = _switchable(copied(model), inputs, CLOSE_64, own_backward=True)
    except GetaError as error:
        raise PruningError(f"the model's own class cannot be cut, and {error}") from error
    rewrite(module, captured, keep, heads)
    cut_(module, keep)
    module.recompile()
    return module, refusal


def _holds_batch(captured: Capture, batch: int) -> str:
    """What is wrong with a graph that holds the batch size as a number; empty if none does."""
    values = [node.meta.get("val") for node in captured.inputs]
    first: list[Any] = [value.shape[0] for value in values if isinstance(value, Tensor) and value.dim() > 0]
    numbers = [size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size for size in first]
    if batch not in numbers:
        return ""
    return (
        f"the traced graph holds the batch size {batch} as a number, so that it takes no other; "
        "a forward must not turn it into one: len(x) does, x.shape[0] does not"
    )


def as_switchable(model: nn.Module, inputs: ExampleInputs) -> fx.GraphModule:
    """The graph of a finished model, for any batch size; a graph module is returned as it is.

    It follows both modes where the model's modes differ in operations alone. A forward that takes another way while it
    trains (``if self.training``) leaves that way in the graph of train mode: then the graph is that of eval mode, in
    which normalizations still follow ``train()``, and dropout does not.

    Raises:
        GetaError: if neither graph computes what the model computes in eval mode.
    """
    return model if isinstance(model, fx.GraphModule) else _switchable(model, inputs, 0.0)[0]


def _switchable(
    model: nn.Module, inputs: ExampleInputs, close: float, *, own_backward: bool = False
) -> tuple[fx.GraphModule, Capture, str]:
    """The graph of train mode if it computes in eval mode what the model does, else that of eval mode and the reason.

    A forward may take another way while it is exported, for example one without branches. Where that is not what it
    computes otherwise, it is traced without being told.

    Args:
        model: not changed.
        inputs: example inputs.
        close: a difference up to this is taken for rounding, even if the model's precision is higher.
        own_backward: refuse a graph in which a function of the model has lost its own backward pass.
    """
    reasons: list[str] = []
    differs = False
    for told, train in itertools.product((True, False), repeat=2):
        if not told and not differs:
            break
        mode = "train" if train else "eval"
        try:
            with _custom_backward() as custom:
                module, captured = export_switchable(model, inputs, train=train, told=told)
        except GetaError as error:
            reasons.append(str(error))
            continue
        if custom and own_backward and not _same_gradients(model, module, inputs, train=train):
            reasons.append(_lost(custom, mode))
            continue
        switch(module, _counters(module))
        gap, random = _gap(model, module, inputs), train and _draws(module)
        if gap <= max(close, SAME_GRAPH * _precision(model)) and not random:
            return module, captured, "" if train else "; ".join(dict.fromkeys(reasons))
        differs = differs or not random
        how = "are random" if random else f"differ from the model's by {gap:.3g}"
        held = _holds_batch(captured, batch_size(inputs))
        reasons.append(held or f"the outputs of the graph of {mode} mode {how} in eval mode")
    raise GetaError(f"the model has no graph that can be stored: {'; '.join(dict.fromkeys(reasons))}")


def _same_gradients(model: nn.Module, module: fx.GraphModule, inputs: ExampleInputs, *, train: bool) -> bool:
    """Whether a graph has the gradients of the model that it was traced from, although it lost a backward pass.

    Both run in the mode of the trace, with the same random numbers.
    """
    model, module = copied((model, module))
    model.train(train)
    found: list[dict[str, Tensor | None]] = []
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    for each in (model, module):
        parameters = {name: held for name, held in each.named_parameters() if held.requires_grad}
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(0)
            leaves = torch.utils._pytree.tree_leaves(inputs.run(each))
            sums = [leaf.square().sum() for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
            gradients = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
        found.append(dict(zip(parameters, gradients, strict=True)))
    own, traced = found
    return own.keys() == traced.keys() and all(_close(own[name], traced[name]) for name in own)


def _close(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return bool((left - right).abs().max() <= SAME_GRADIENT * left.abs().max())


def _lost(custom: set[str], mode: str) -> str:
    return (
        f"the graph of {mode} mode would lose the backward pass of {', '.join(sorted(custom))} "
        "(torch.autograd.Function); take sizes from tensors instead of numbers in forward, so that the class can be "
        "cut, or make the function a torch.library.custom_op with register_autograd, and give it a rule with "
        "geta_core.register_rule"
    )


def _draws(module: fx.GraphModule) -> bool:
    """Whether a graph draws random numbers in every mode."""
    return any(
        isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
        for node in module.graph.nodes
    )


def _gap(model: nn.Module, module: fx.GraphModule, inputs: ExampleInputs) -> float:
    """The largest difference in eval mode for two batch sizes, without the rounding of inputs; inf where one fails."""
    from geta_core.slim.verify import difference, without_input_quantizers

    try:
        smooth = without_input_quantizers(model), without_input_quantizers(module)
        return difference(*smooth, inputs, train=False).eval_mode
    except Exception:  # noqa: BLE001  # a graph may hold a size that only one of the batches has
        return float("inf")


def _precision(model: nn.Module) -> float:
    held = [tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    return max((torch.finfo(dtype).eps for dtype in held), default=torch.finfo(torch.float32).eps)


def _counters(module: fx.GraphModule) -> set[fx.Node]:
    """Buffers of whole numbers, which training counts up in place."""
    attributes = [node for node in module.graph.nodes if node.op == "get_attr"]
    return {node for node in attributes if not _attribute(module, str(node.target)).is_floating_point()}


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, leaf = path.rpartition(".")
    return cast(Tensor, getattr(module.get_submodule(owner), leaf))
