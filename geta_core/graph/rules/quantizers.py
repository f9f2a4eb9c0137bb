"""Fake quantizers, our own and torch's: labels pass through, and zero stays zero.

A grid that has whole multiples of its step and a whole zero point holds the number zero exactly.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand
from geta_core.graph.rules.base import Rule, add, argument
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import Zeros

aten = torch.ops.aten


def _along(ctx: Dependencies, node: fx.Node, axis: int | None) -> Layers:
    """Tie every vector of a quantizer to dimension ``axis`` of what it quantizes; such vectors are only cut.

    With ``axis`` None they broadcast against it from the right.
    """
    x, shape = node.args[0], shape_of(node.args[0])
    operands = [ctx.operand(x, range(len(shape)))]
    for value in node.args[1:]:
        if not isinstance(value, fx.Node):
            continue
        ctx.quantizer_ids += [layer[layer >= 0] for layer in ctx.layers(value)]
        own = shape_of(value)
        if axis is not None and own == (shape[axis],):
            operands.append(ctx.operand(value, (axis,)))
        elif axis is None and own:
            operands.append(ctx.operand(value, range(len(shape) - len(own), len(shape))))
    return ctx.combine(node, operands, range(len(shape)))


def _own_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    return _along(ctx, node, None)


def _per_tensor_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    shape = shape_of(node.args[0])
    return ctx.combine(node, [Operand(ctx.layers(node.args[0]), tuple(range(len(shape))), shape)], range(len(shape)))


def _per_channel_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    return _along(ctx, node, int(cast(int, argument(node, 3, "axis"))) % len(shape_of(node.args[0])))


def _observed_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """Moving averages of the range: one per channel, or one for all."""
    axis: Any = argument(node, 10, "ch_axis")
    if argument(node, 11, "per_row_fake_quant", False):
        return _along(ctx, node, int(axis) % len(shape_of(node.args[0])))
    return _per_tensor_labels(ctx, node)


def _same_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    return ctx.zeros(node.args[0])


def install() -> None:
    """Enter the rules of this file."""
    add([torch.ops.geta.fake_quantize.default], Rule(_own_labels, _same_zeros))
    whole = [aten.fake_quantize_per_tensor_affine, aten._fake_quantize_learnable_per_tensor_affine]
    add(whole, Rule(_per_tensor_labels, _same_zeros))
    rows = [aten.fake_quantize_per_channel_affine, aten._fake_quantize_learnable_per_channel_affine]
    add(rows, Rule(_per_channel_labels, _same_zeros))
    add([aten.fused_moving_avg_obs_fake_quant], Rule(_observed_labels, _same_zeros))
