"""Normalizations. A channel in a statistic changes it by being there, even as a zero: it is pinned or flagged."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph.capture import where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand, collapse, tidy, varying
from geta_core.graph.rules.base import Rule, add, argument
from geta_core.graph.sizes import shape_of
from geta_core.graph.streams import Mean
from geta_core.graph.zeros import Zeros, meet

aten = torch.ops.aten


def statistic(
    ctx: Dependencies, node: fx.Node, layers: Layers, dims: frozenset[int], what: str, *, mean: bool = False
) -> Layers:
    """Layers before a statistic over ``dims``: whole blocks along other dimensions may go, parts of it may not.

    Of a ``mean`` parts may go, too, where they are zero: what they would have added is known.
    """
    kept = []
    for layer in layers:
        inner, outer = varying(layer) & dims, varying(layer) - dims
        if inner and outer and ctx.heads == "head":
            layer = ctx.space.tie_across(layer, inner, f"enters {what} whole, at {where(node)}")
        elif inner and mean and not outer:
            ctx.means.append(Mean(node, layer, f"enters {what}", len(ctx.space.pins)))
        elif inner and ctx.prune_normalized:
            ctx.inexact.append(layer[layer >= 0])
        elif inner:
            ctx.pin(node, layer, f"enters {what}")
        kept.append(layer)
    return tuple(kept)


def _channel_norm_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """Batch and instance norm: statistics of each channel by itself; four vectors follow the channel."""
    rank = len(shape_of(node.args[0]))
    # Over the whole batch where a batch norm has no running statistics, else over the places of one example.
    whole = node.target.overloadpacket is aten.batch_norm and not isinstance(node.args[3], fx.Node)  # type: ignore[union-attr]
    dims = frozenset(range(rank)) - {1} if whole else frozenset(range(2, rank))
    x = statistic(ctx, node, ctx.layers(node.args[0]), dims, "the statistics of a channel")
    operands = [Operand(x, tuple(range(rank)), shape_of(node.args[0]), node.args[0] in ctx.capture.data)]
    operands += [ctx.operand(v, (1,)) for v in node.args[1:5] if isinstance(v, fx.Node)]
    return ctx.combine(node, operands, range(rank))


def _affine_zeros(ctx: Zeros, x: Layers, weight: Any, bias: Any, after: int) -> Layers:
    """Zeros of x * weight + bias for vectors with ``after`` further dimensions."""

    def vector(value: Any) -> Layers:
        return tuple(v.reshape([*v.shape, *[1] * after]) for v in ctx.zeros(value))

    scaled = (*x, *vector(weight)) if isinstance(weight, fx.Node) else x
    return meet(tidy(scaled), vector(bias)) if isinstance(bias, fx.Node) else tidy(scaled)


def _batch_norm_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    """A zero channel leaves batch norm as -mean / std * weight + bias: both weight and bias must be zero."""
    after = len(shape_of(node.args[0])) - 2
    return _affine_zeros(ctx, (), node.args[1], node.args[2], after)


def _instance_norm_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    """With its own statistics a zero channel stays zero before the affine part."""
    rank = len(shape_of(node.args[0]))
    own = bool(node.args[5]) if len(node.args) > 5 else bool(node.kwargs.get("use_input_stats", True))
    x = tuple(layer for layer in ctx.zeros(node.args[0]) if varying(layer) <= {0, 1}) if own else ()
    return _affine_zeros(ctx, x, node.args[1], node.args[2], rank - 2)


# ---------------------------------------------------------------- layer norm, RMS norm


def _trailing_labels(position: int, *, mean: bool) -> Any:
    """Norms over the last dimensions, by their ``mean`` square alone; their vectors start at argument ``position``."""

    def labels(ctx: Dependencies, node: fx.Node) -> Layers:
        rank, count = len(shape_of(node.args[0])), len(node.args[1])  # type: ignore[arg-type]
        dims = frozenset(range(rank - count, rank))
        x = statistic(ctx, node, ctx.layers(node.args[0]), dims, "a LayerNorm or RMSNorm reduction", mean=mean)
        operands = [Operand(x, tuple(range(rank)), shape_of(node.args[0]), node.args[0] in ctx.capture.data)]
        for value in node.args[position : position + 2]:
            if isinstance(value, fx.Node):
                operands.append(ctx.operand(value, sorted(dims)))
        return ctx.combine(node, operands, range(rank))

    return labels


def _layer_norm_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    """A channel leaves as weight and bias, whatever it is; where all of them are zero, so is what is left."""
    rank, count = len(shape_of(node.args[0])), len(node.args[1])  # type: ignore[arg-type]
    dims = frozenset(range(rank - count, rank))
    x = tuple(layer for layer in ctx.zeros(node.args[0]) if not varying(layer) & dims)
    return _affine_zeros(ctx, x, argument(node, 2, "weight"), argument(node, 3, "bias"), 0)


def _rms_norm_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    """Nothing is subtracted: a channel of zeros stays one."""
    ctx.require_zero_mean(node)
    return _affine_zeros(ctx, ctx.zeros(node.args[0]), argument(node, 2, "weight"), None, 0)


# ---------------------------------------------------------------- group norm


def _group_norm_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """Whole norm groups may go; a part of one may not."""
    x, groups = node.args[0], cast(int, node.args[1])
    rank, channels = len(shape_of(x)), shape_of(x)[1]
    layers = []
    for layer in ctx.layers(x):
        if 1 in varying(layer) and (groups == 1 or varying(layer) != {1}):
            ctx.pin(node, layer, "enters a GroupNorm reduction")
        elif 1 in varying(layer):
            blocks = layer.reshape(groups, channels // groups)
            first = ctx.space.tie_across(blocks, (1,), f"enters a GroupNorm reduction whole, at {where(node)}")
            layer = first.expand(groups, channels // groups).reshape(layer.shape)
        layers.append(layer)
    operands = [Operand(tuple(layers), tuple(range(rank)), shape_of(x), x in ctx.capture.data)]
    operands += [
        ctx.operand(v, (1,)) for v in (argument(node, 2, "weight"), argument(node, 3, "bias")) if v is not None
    ]
    return ctx.combine(node, operands, range(rank))


def _group_norm_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    """Zero if the whole norm group is (or the weight), and the bias is."""
    x, groups = node.args[0], cast(int, node.args[1])
    rank, channels = len(shape_of(x)), shape_of(x)[1]
    whole: list[Tensor] = []
    for layer in ctx.zeros(x):
        if varying(layer) <= {1}:
            blocks = layer.expand([1, channels, *[1] * (rank - 2)]).reshape(groups, -1)
            same = (blocks == blocks[:, :1]).all(1, keepdim=True)
            blocks = torch.where(same, blocks, torch.full_like(blocks, -1))
            whole.append(collapse(blocks.reshape([1, channels, *[1] * (rank - 2)])))
    return _affine_zeros(ctx, tuple(whole), argument(node, 2, "weight"), argument(node, 3, "bias"), rank - 2)


def _alone(rule: Rule) -> Rule:
    """The rule of a norm that also returns what it saves for its backward pass, which here is nothing."""

    def first(of: Any) -> Any:
        return lambda ctx, node: [of(ctx, node), *[()] * (len(node.meta["val"]) - 1)]

    return Rule(first(rule.labels), first(rule.zeros))


def install() -> None:
    """Enter the rules of this file."""
    batch_norm = Rule(_channel_norm_labels, _batch_norm_zeros)
    add([aten.batch_norm], batch_norm)
    add([aten._native_batch_norm_legit_no_training], _alone(batch_norm))
    add([aten.instance_norm], Rule(_channel_norm_labels, _instance_norm_zeros))
    add([aten.layer_norm], Rule(_trailing_labels(2, mean=False), _layer_norm_zeros))
    add([aten.rms_norm], Rule(_trailing_labels(2, mean=True), _rms_norm_zeros))
    add([aten.group_norm], Rule(_group_norm_labels, _group_norm_zeros))
