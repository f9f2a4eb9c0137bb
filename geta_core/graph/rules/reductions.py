"""Reductions, softmax, pooling and resizing, embedding and indexing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from geta_core.graph.capture import Capture, where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, tidy, varying
from geta_core.graph.rules.along import positions, results
from geta_core.graph.rules.base import Rule, Value, add, argument
from geta_core.graph.rules.norms import statistic
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import Zeros

aten = torch.ops.aten


def reduced_dims(node: fx.Node) -> frozenset[int]:
    """Dimensions that a reduction removes; all of them if none is named."""
    rank = len(shape_of(node.args[0]))
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    # A vector norm names its order before its dimensions, the k-th value its k.
    position = 2 if packet in (*_NORMS, aten.kthvalue) else 1
    value = argument(node, position, "dim", -1 if packet is aten.kthvalue else None)
    if isinstance(value, int) and not isinstance(value, bool):
        return frozenset({value % rank})
    if isinstance(value, (list, tuple)) and value:
        return frozenset(int(d) % rank for d in value)
    return frozenset(range(rank))


def _reduced(layer: Tensor, node: fx.Node, dims: frozenset[int]) -> Tensor:
    """Shape of a layer after the reduction (its sizes along ``dims`` are 1)."""
    value = node.meta["val"]
    kept = len((value[0] if isinstance(value, (list, tuple)) else value).shape) == layer.dim()
    return layer if kept else layer.reshape([size for dim, size in enumerate(layer.shape) if dim not in dims])


def sum_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """A sum over removable indices eliminates them: allowed where they are exactly zero."""
    dims = reduced_dims(node)
    found = []
    for layer in ctx.layers(node.args[0]):
        inner, outer = varying(layer) & dims, varying(layer) - dims
        if inner and outer:
            layer = ctx.space.tie_across(layer, inner, "summed whole")
        elif inner:
            continue
        found.append(_reduced(layer, node, dims))
    return tidy(found)


def sum_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    """What is summed away has to be zero; what stays is zero where all of its summands are."""
    dims = reduced_dims(node)
    letters = tuple(range(len(shape_of(node.args[0]))))
    ctx.require_zero(node, [(node.args[0], ctx.first.operand(node.args[0], letters))], dims)
    return tidy(_reduced(layer, node, dims) for layer in ctx.zeros(node.args[0]) if not varying(layer) & dims)


def statistic_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """A number of several values changes with what it is taken over: parts of it stay."""
    return _of_several(ctx, node, mean=False)


def mean_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """But what zeros do to a mean is known."""
    return _of_several(ctx, node, mean=True)


def _of_several(ctx: Dependencies, node: fx.Node, *, mean: bool) -> Value:
    dims = reduced_dims(node)
    layers = statistic(ctx, node, ctx.layers(node.args[0]), dims, f"a reduction ({node.target})", mean=mean)
    found = tidy(_reduced(layer, node, dims) for layer in layers if not varying(layer) & dims)
    value = node.meta["val"]
    return [found] * len(value) if isinstance(value, (list, tuple)) else found


def passing_zeros(ctx: Zeros, node: fx.Node) -> Value:
    """Zero where all values that are reduced are."""
    dims = reduced_dims(node)
    found = tidy(_reduced(layer, node, dims) for layer in ctx.zeros(node.args[0]) if not varying(layer) & dims)
    value = node.meta["val"]
    if not isinstance(value, (list, tuple)):
        return found
    # Where an extreme value lies is not zero because the values are.
    return [found if part.dtype == value[0].dtype else () for part in value]


def mean_zeros(ctx: Zeros, node: fx.Node) -> Value:
    """What a mean is taken over has to be zero where it goes; the result is zero where all of it is."""
    ctx.require_zero_mean(node)
    return passing_zeros(ctx, node)


_NORMS = (aten.linalg_vector_norm, aten.linalg_norm)


def _norm_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """Zeros add nothing to a norm of positive order; one of negative order is a minimum, one of a matrix is neither."""
    return sum_labels(ctx, node) if _adds(node) else statistic_labels(ctx, node)


def _norm_zeros(ctx: Zeros, node: fx.Node) -> Value:
    return sum_zeros(ctx, node) if _adds(node) else passing_zeros(ctx, node)


def _adds(node: fx.Node) -> bool:
    """Whether a norm is that of a vector, and of an order that is not negative; without an order it is the length."""
    order = argument(node, 1, "ord")
    matrix = node.target.overloadpacket is aten.linalg_norm and len(reduced_dims(node)) > 1  # type: ignore[union-attr]
    return order is None or (not isinstance(order, str) and not matrix and float(order) >= 0)


def _softmax_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    dims = reduced_dims(node)
    kept = []
    for layer in ctx.layers(node.args[0]):
        inner = varying(layer) & dims
        if inner and varying(layer) - inner:
            layer = ctx.space.tie_across(layer, sorted(inner), f"enters a softmax whole, at {where(node)}")
        elif inner:
            ctx.pin(node, layer, "enters a softmax")
        kept.append(layer)
    return tuple(kept)


def _no_zeros(ctx: Zeros, node: fx.Node) -> Value:
    value = node.meta["val"]
    return [() for _ in value] if isinstance(value, (list, tuple)) else ()


# ---------------------------------------------------------------- pooling and resizing


def _spatial(rank: int, node: fx.Node) -> frozenset[int]:
    total = len(shape_of(node.args[0]))
    return frozenset(range(total - rank, total))


def _pool(rank: int) -> Rule:
    """Windows over the last ``rank`` dimensions; channels pass, positions must stay."""

    def labels(ctx: Dependencies, node: fx.Node) -> Value:
        layers = ctx.layers(node.args[0])
        return results(node, positions(ctx, node, layers, _spatial(rank, node), "is a position in a pooling window"))

    def zeros(ctx: Zeros, node: fx.Node) -> Value:
        found = tuple(layer for layer in ctx.zeros(node.args[0]) if not varying(layer) & _spatial(rank, node))
        value = node.meta["val"]
        return [found, *[()] * (len(value) - 1)] if isinstance(value, (list, tuple)) else found

    return Rule(labels, zeros)


# ---------------------------------------------------------------- embedding and indexing


def _embedding_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    weight, index = node.args[:2]
    found = []
    for layer in ctx.layers(weight):
        if 0 in varying(layer):
            ctx.pin(node, layer, "is looked up by a data-dependent index")
            continue
        if node in ctx.capture.data or weight not in ctx.capture.data:
            ctx.passed.append(layer[layer >= 0])
        found.append(layer.reshape([1] * len(shape_of(index)) + [layer.shape[-1]]))
    for layer in ctx.layers(index):
        ctx.pin(node, layer, "is used as an index")
    return tidy(found)


def _embedding_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    weight, index = node.args[:2]
    rows = [layer for layer in ctx.zeros(weight) if 0 not in varying(layer)]
    return tidy(layer.reshape([1] * len(shape_of(index)) + [layer.shape[-1]]) for layer in rows)


def _index_positions(node: fx.Node) -> list[Any]:
    return list(node.args[1])  # type: ignore[arg-type]


def _at_zero(node: fx.Node, layer: Tensor) -> Tensor:
    """The node's indexing with every index 0: right for layers that do not vary along the indexed dimensions."""
    source, indices = shape_of(node.args[0]), _index_positions(node)
    picks = [torch.zeros(shape_of(i), dtype=torch.long) if i is not None else None for i in indices]
    result: Tensor = aten.index.Tensor(layer.expand(source), picks)
    return result


def _indexed(node: fx.Node) -> frozenset[int]:
    return frozenset(dim for dim, index in enumerate(_index_positions(node)) if index is not None)


def chosen_row(capture: Capture, node: fx.Node) -> tuple[int, Tensor] | None:
    """Dimension and positions of an indexing by one constant row of positions; None for any other."""
    indices = [(dim, index) for dim, index in enumerate(_index_positions(node)) if index is not None]
    if len(indices) != 1:
        return None
    dim, index = indices[0]
    while index.op == "call_function" and index.target in _COPIES:
        index = index.args[0]
    name = capture.names.get(index)
    if name is None or name in capture.parameters:
        return None
    value = capture.tensors[name]
    if value.dim() != 1 or value.dtype not in (torch.int64, torch.int32):
        return None
    size = shape_of(node.args[0])[dim]
    return dim, value.cpu().long() % size


_COPIES = (aten.lift_fresh_copy.default, aten.detach.default, aten.detach_.default, aten.alias.default)


def _index_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    chosen = chosen_row(ctx.capture, node)
    if chosen is not None:
        dim, row = chosen
        layers = ctx.entering(node, ctx.layers(node.args[0]))
        return tidy(layer.index_select(dim, row) if dim in varying(layer) else layer for layer in layers)
    found = []
    for layer in ctx.entering(node, ctx.layers(node.args[0])):
        if varying(layer) & _indexed(node):
            ctx.pin(node, layer, "is looked up by an index tensor")
        else:
            found.append(_at_zero(node, layer))
    for index in _index_positions(node):
        for layer in ctx.layers(index):
            ctx.pin(node, layer, "is used as an index")
    return tidy(found)


def _index_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    chosen = chosen_row(ctx.capture, node)
    if chosen is not None:
        dim, row = chosen
        return tidy(z.index_select(dim, row) if dim in varying(z) else z for z in ctx.zeros(node.args[0]))
    return tidy(_at_zero(node, layer) for layer in ctx.zeros(node.args[0]) if not varying(layer) & _indexed(node))


_POOLS: dict[int, list[Any]] = {
    1: [
        aten.max_pool1d,
        aten.max_pool1d_with_indices,
        aten.avg_pool1d,
        aten.adaptive_avg_pool1d,
        aten.adaptive_max_pool1d,
        aten.upsample_nearest1d,
        aten._upsample_nearest_exact1d,
        aten.upsample_linear1d,
        aten.reflection_pad1d,
        aten.replication_pad1d,
    ],
    2: [
        aten.max_pool2d,
        aten.max_pool2d_with_indices,
        aten.avg_pool2d,
        aten.adaptive_avg_pool2d,
        aten.adaptive_max_pool2d,
        aten.fractional_max_pool2d,
        aten.upsample_nearest2d,
        aten._upsample_nearest_exact2d,
        aten.upsample_bilinear2d,
        aten._upsample_bilinear2d_aa,
        aten.upsample_bicubic2d,
        aten._upsample_bicubic2d_aa,
        aten.reflection_pad2d,
        aten.replication_pad2d,
    ],
    3: [
        aten.max_pool3d,
        aten.max_pool3d_with_indices,
        aten.avg_pool3d,
        aten.adaptive_avg_pool3d,
        aten.adaptive_max_pool3d,
        aten.upsample_nearest3d,
        aten._upsample_nearest_exact3d,
        aten.upsample_trilinear3d,
        aten.reflection_pad3d,
        aten.replication_pad3d,
    ],
}
"""Operations on windows of the last 1, 2 or 3 dimensions; windows of zeros give zero."""


def install() -> None:
    """Enter the rules of this file."""
    add([aten.sum], Rule(sum_labels, sum_zeros))
    add([aten.mean], Rule(mean_labels, mean_zeros))
    statistics: Sequence[Any] = [
        aten.var,
        aten.std,
        aten.var_mean,
        aten.std_mean,
        aten.prod,
        aten.median,
        aten.nanmean,
        aten.any,
        aten.all,
        aten.argmax,
        aten.argmin,
        aten.kthvalue,
    ]
    add(statistics, Rule(statistic_labels, passing_zeros))
    add([aten.logsumexp], Rule(statistic_labels, _no_zeros))
    add(_NORMS, Rule(_norm_labels, _norm_zeros))
    add([aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax], Rule(_softmax_labels, _no_zeros))
    for rank, ops in _POOLS.items():
        add(ops, _pool(rank))
    add([aten.embedding], Rule(_embedding_labels, _embedding_zeros))
    add([aten.index], Rule(_index_labels, _index_zeros))
