"""Slimming on the exported graph: parameters are cut, and sizes that the graph holds as numbers are rewritten."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from geta_core.errors import GetaError, PruningError
from geta_core.graph.capture import Capture, ExampleInputs, _named, first_line
from geta_core.graph.inline import inline_regions
from geta_core.slim.cut import Keep, cut_
from geta_core.slim.modes import switch
from geta_core.slim.rewriting import rewrite

aten = torch.ops.aten


def export_switchable(model: nn.Module, inputs: ExampleInputs) -> tuple[fx.GraphModule, Capture]:
    """Export in train mode with a dynamic batch; the result follows ``train()`` / ``eval()`` and has the model's names.

    The parameters are shared with ``model``, whose mode is restored.

    Raises:
        GetaError: if torch.export cannot trace the model so.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        program = _dynamic_export(model, inputs)
    finally:
        for owner, training in modes.items():
            owner.training = training
    inline_regions(program)
    program.graph_module.graph.eliminate_dead_code(is_impure_node=lambda node: _writes(node))
    module = program.module(check_guards=False)
    for path in program.graph_signature.lifted_tensor_constants:
        _hold(module, path)
    return module, _named(model, program)


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
        raise GetaError(f"torch.export cannot trace the model in train mode: {first_line(error)}") from error


def batch_size(inputs: ExampleInputs) -> int:
    """First dimension of the first tensor."""
    return int(next(leaf.shape[0] for leaf in inputs.leaves() if isinstance(leaf, Tensor) and leaf.dim() > 0))


def slim_graph(model: nn.Module, inputs: ExampleInputs, keep: Keep) -> fx.GraphModule:
    """A graph module with smaller parameters that computes what ``model`` computes with the cut indices at zero.

    Args:
        model: a model without parametrizations; it is not changed.
        inputs: example inputs in the model's dtype.
        keep: indices that stay.

    Raises:
        PruningError: if a number in the graph cannot follow the cut, or the model's own backward pass would be lost.
    """
    with _custom_backward() as custom:
        module, captured = export_switchable(copy.deepcopy(model), inputs)
    if custom:
        raise PruningError(
            f"the model's own class cannot be cut, and a graph module would lose the backward pass of "
            f"{', '.join(sorted(custom))} (torch.autograd.Function); take sizes from tensors instead of numbers in "
            "forward, so that the class can be cut, or make the function a torch.library.custom_op with "
            "register_autograd, and give it a rule with geta_core.register_rule"
        )
    _check_batch(captured, batch_size(inputs))
    rewrite(module, captured, keep)
    switch(module, _counters(module))
    cut_(module, keep)
    module.recompile()
    return module


def _check_batch(captured: Capture, batch: int) -> None:
    values = [node.meta.get("val") for node in captured.inputs]
    first: list[Any] = [value.shape[0] for value in values if isinstance(value, Tensor) and value.dim() > 0]
    numbers = [size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size for size in first]
    if batch in numbers:
        raise PruningError(
            f"the traced graph holds the batch size {batch} as a number, so that it takes no other; "
            "a forward must not turn it into one: len(x) does, x.shape[0] does not"
        )


def as_switchable(model: nn.Module, inputs: ExampleInputs) -> fx.GraphModule:
    """The graph of a finished model, for any batch size and both modes; a graph module is returned as it is."""
    if isinstance(model, fx.GraphModule):
        return model
    module, _ = export_switchable(model, inputs)
    switch(module, _counters(module))
    return module


def _counters(module: fx.GraphModule) -> set[fx.Node]:
    """Buffers of whole numbers, which training counts up in place."""
    attributes = [node for node in module.graph.nodes if node.op == "get_attr"]
    return {node for node in attributes if not _attribute(module, str(node.target)).is_floating_point()}


def _attribute(module: nn.Module, path: str) -> Tensor:
    owner, _, leaf = path.rpartition(".")
    return cast(Tensor, getattr(module.get_submodule(owner), leaf))
