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

SAME_GRAPH = 100.0
"""Largest difference of a graph from the model that it was traced from, in units of the model's precision and relative
to the largest output: the same operations run in both, some of them (attention) by another kernel."""


def export_switchable(model: nn.Module, inputs: ExampleInputs, *, train: bool = True) -> tuple[fx.GraphModule, Capture]:
    """Export in train mode with a dynamic batch; the result follows ``train()`` / ``eval()`` and has the model's names.

    The parameters are shared with ``model``, whose mode is restored. With ``train=False`` it is the graph of eval mode.

    Raises:
        GetaError: if torch.export cannot trace the model so.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(train)
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
        mode = "train" if model.training else "eval"
        raise GetaError(f"torch.export cannot trace the model in {mode} mode: {first_line(error)}") from error


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
    """The graph of a finished model, for any batch size; a graph module is returned as it is.

    It follows both modes where the model's modes differ in operations alone. A forward that takes another way while it
    trains (``if self.training``) leaves that way in the graph of train mode: then the graph is that of eval mode, in
    which normalizations still follow ``train()``, and dropout does not.

    Raises:
        GetaError: if neither graph computes what the model computes in eval mode.
    """
    if isinstance(model, fx.GraphModule):
        return model
    reason = ""
    for train in (True, False):
        try:
            module, _ = export_switchable(model, inputs, train=train)
        except GetaError as error:
            reason = reason or str(error)
            continue
        switch(module, _counters(module))
        gap = _gap(model, module, inputs)
        if gap <= SAME_GRAPH * _precision(model):
            return module
        reason = reason or f"its outputs differ from the model's by {gap:.3g}"
    raise GetaError(f"the model has no graph that can be stored: {reason}")


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
