"""Try the user's own module class first: cut, run, compare; adjust integer attributes where that makes it right."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn

from geta_core.copying import copied
from geta_core.graph.capture import ExampleInputs, first_line, forget_, where
from geta_core.graph.groups import GroupGraph
from geta_core.graph.sizes import shape_of
from geta_core.slim.cut import Keep, cut_, integer_attributes, zero_
from geta_core.slim.graph_module import slim_graph
from geta_core.slim.rewriting import Removal
from geta_core.slim.verify import TOLERANCE_64, difference, outputs, without_input_quantizers

MOST_ATTEMPTS = 64
"""Sets of attributes that are tried before the graph module is taken."""

aten = torch.ops.aten


@dataclass(frozen=True)
class Change:
    """An integer attribute that follows the cut."""

    module: str
    attribute: str
    value: int


def candidates(model: nn.Module, graph: GroupGraph, dead: torch.Tensor) -> list[Change]:
    """Attributes that hold the old size of a cut dimension, in modules whose forward shapes a tensor by it."""
    removal = Removal(graph.first, graph.dead_ids(dead))
    made = (aten.zeros, aten.ones, aten.full, aten.new_zeros, aten.new_ones, aten.new_full)
    shaping = (*made, aten.view, aten.reshape, aten._unsafe_view, aten.unflatten, aten.split, aten.slice, aten.expand)
    found: dict[tuple[str, str], Change] = {}
    modules = dict(model.named_modules())
    for node in graph.capture.graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in shaping:
            continue
        for old, new in _changed_sizes(removal, node):
            for path, name in _holders(modules, node, old):
                found.setdefault((path, name), Change(path, name, new))
    return list(found.values())


def _changed_sizes(removal: Removal, node: fx.Node) -> list[tuple[int, int]]:
    results: Sequence[int | None] = [None]
    if isinstance(node.meta["val"], (list, tuple)):
        results = range(len(node.meta["val"]))
    sizes = []
    for output in results:
        value = node.meta["val"] if output is None else node.meta["val"][output]
        for dim, size in enumerate(value.shape):
            kept = removal.size(node, dim, output)
            if kept != int(size):
                sizes.append((int(size), kept))
    source = node.args[0]
    if isinstance(source, fx.Node) and shape_of(source):
        for dim, size in enumerate(shape_of(source)):
            if not isinstance(removal.first.values.get(source), list):
                kept = removal.size(source, dim)
                if kept != size:
                    sizes.append((size, kept))
    return sizes


def _holders(modules: dict[str, nn.Module], node: fx.Node, value: int) -> Iterable[tuple[str, str]]:
    for path, _ in node.meta.get("nn_module_stack", {}).values():
        owner = modules.get(path)
        if owner is not None:
            for name in integer_attributes(owner, value):
                yield path, name


def slim_native(
    baked64: nn.Module,
    graph: GroupGraph,
    dead: torch.Tensor,
    keep: Keep,
    inputs64: ExampleInputs,
    *,
    exact: bool = True,
) -> tuple[tuple[Change, ...] | None, str]:
    """Find attribute changes with which the cut module equals the zeroed one in float64.

    Args:
        baked64: the zeroed model in float64, without parametrizations.
        graph: its groups.
        dead: bool [num_prunable].
        keep: indices that stay.
        inputs64: example inputs in float64.
        exact: otherwise removal changes the result, and the module is compared with the cut graph.

    Returns:
        The changes, or None and the first failure.
    """
    reason = _recounted(graph, dead)
    if reason:
        return None, reason
    generic = _generic(baked64, graph, dead, inputs64)
    reference = generic if exact else slim_graph(generic, inputs64, keep, graph.first.heads)[0]
    for changes in _attempts(candidates(baked64, graph, dead)):
        trial = copied(generic)
        try:
            apply_(trial, keep, changes)
            gap = difference(reference, trial, inputs64)
        except Exception as error:  # noqa: BLE001  # a user's forward may fail in any way; the first failure is reported
            reason = reason or first_line(error)
            continue
        if gap.worst <= TOLERANCE_64:
            return changes, ""
        reason = reason or f"outputs differ by {gap.worst:.2g}"
    return None, reason


def _recounted(graph: GroupGraph, dead: torch.Tensor) -> str:
    """Why a class cannot be cut that takes a mean over fewer channels than before; empty if none does."""
    removal = Removal(graph.first, graph.dead_ids(dead))
    for mean in graph.first.means:
        if removal.share(mean.node) != 1:
            return (
                "a mean over removed channels has to count them, which a graph can be told and a class cannot, at "
                f"{where(mean.node)}"
            )
    return ""


def _generic(baked64: nn.Module, graph: GroupGraph, dead: torch.Tensor, inputs64: ExampleInputs) -> nn.Module:
    """The model at other values, its dead groups at zero and its inputs not quantized.

    Two forwards that differ may agree at special values: behind a head of zeros everything is equal, and rounding hides
    small differences. What agrees at random values is the same computation.
    """
    plain = without_input_quantizers(baked64)
    model, generator = copied(plain), torch.Generator().manual_seed(0)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in tensors.values():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            spread = tensor.std() if tensor.numel() > 1 else tensor.abs().mean()
            tensor.add_(noise * torch.where(spread > 0, spread, torch.full_like(spread, 0.1)))
        for slot in graph.prune_slots():
            index = torch.nonzero((slot.group >= 0) & dead[slot.group.clamp(min=0)]).flatten()
            zero_(tensors, {(slot.name, slot.dim): index})
        forget_(model)
        try:
            finite = all(bool(tensor.isfinite().all()) for tensor in outputs(model.eval(), inputs64))
        except Exception:  # noqa: BLE001  # a user's forward may refuse values that it does not expect
            finite = False
    return model if finite else plain


def apply_(model: nn.Module, keep: Keep, changes: Iterable[Change]) -> nn.Module:
    """Cut in place and set the attributes; what modules keep of earlier forwards is forgotten."""
    cut_(model, keep)
    forget_(model)
    for change in changes:
        setattr(model.get_submodule(change.module), change.attribute, change.value)
    return model


def _attempts(changes: list[Change]) -> Iterable[tuple[Change, ...]]:
    """No change first, then sets of attribute names, small sets first; modules of one attribute name move together."""
    names = sorted({change.attribute for change in changes})
    subsets = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(len(names) + 1))
    for subset in itertools.islice(subsets, MOST_ATTEMPTS):
        yield cast(tuple[Change, ...], tuple(change for change in changes if change.attribute in subset))
