"""Windows over positions, layouts in memory, complex numbers, and values that the code makes."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph.capture import where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, tidy, varying
from geta_core.graph.rules.along import positions
from geta_core.graph.rules.base import Rule, Value, add, add_factories
from geta_core.graph.sizes import literal, shape_of
from geta_core.graph.zeros import ALWAYS, Zeros

aten = torch.ops.aten

# ---------------------------------------------------------------- windows


def _spatial(node: fx.Node) -> frozenset[int]:
    rank = len(shape_of(node.args[0]))
    return frozenset(range(rank - 2, rank))


def _area(node: fx.Node, position: int) -> int:
    return math.prod(cast(list[int], literal(node.args[position])))


def _channel_layers(layers: Layers, dims: frozenset[int]) -> list[Tensor]:
    return [layer for layer in layers if not varying(layer) & dims]


def _im2col(layers: list[Tensor], area: int) -> Layers:
    """[N, C, H, W] -> [N, C * area, L]: every channel is repeated for the places of its window."""
    found = []
    for layer in layers:
        flat = layer.squeeze(-1)
        found.append(flat.repeat_interleave(area, -2) if flat.shape[-2] > 1 else flat)
    return tidy(found)


def _im2col_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    layers = positions(ctx, node, ctx.layers(node.args[0]), _spatial(node), "is a position of a window")
    return _im2col(list(layers), _area(node, 1))


def _im2col_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    return _im2col(_channel_layers(ctx.zeros(node.args[0]), _spatial(node)), _area(node, 1))


def _col2im_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """[N, C * area, L] -> [N, C, H, W]: the places of a channel's window are summed, and go together."""
    rank, area = len(shape_of(node.args[0])), _area(node, 2)
    last = frozenset({rank - 1})
    found = []
    for layer in positions(ctx, node, ctx.layers(node.args[0]), last, "is a window's position"):
        if rank - 2 in varying(layer):
            blocks = layer.unflatten(rank - 2, (-1, area))
            layer = ctx.space.tie_across(blocks, (rank - 1,), f"is summed whole, at {where(node)}").squeeze(rank - 1)
        found.append(layer.unsqueeze(-1))
    return tidy(found)


def _col2im_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    rank, area = len(shape_of(node.args[0])), _area(node, 2)
    found = []
    for layer in _channel_layers(ctx.zeros(node.args[0]), frozenset({rank - 1})):
        if rank - 2 in varying(layer):
            blocks = layer.unflatten(rank - 2, (-1, area))
            same = (blocks == blocks.narrow(rank - 1, 0, 1)).all(rank - 1)
            first = blocks.select(rank - 1, 0)
            layer = torch.where(same, first, torch.full_like(first, -1))
        found.append(layer.unsqueeze(-1))
    return tidy(found)


def _unfold_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    dim = int(cast(int, node.args[1])) % len(shape_of(node.args[0]))
    layers = positions(ctx, node, ctx.layers(node.args[0]), frozenset({dim}), "is a position of a sliding window")
    return tuple(layer.unsqueeze(-1) for layer in layers)


def _unfold_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    dim = int(cast(int, node.args[1])) % len(shape_of(node.args[0]))
    return tuple(layer.unsqueeze(-1) for layer in _channel_layers(ctx.zeros(node.args[0]), frozenset({dim})))


def _sampled_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """Values are read at the places of a grid: channels pass, places stay."""
    x, grid = cast(list[fx.Node], node.args[:2])
    rank = len(shape_of(x))
    layers = positions(ctx, node, ctx.layers(x), frozenset(range(2, rank)), "is a position of a sampled grid")
    for layer in ctx.layers(grid):
        ctx.pin(node, layer, "is a coordinate of a sampled grid")
    return layers


def _sampled_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    return tuple(_channel_layers(ctx.zeros(node.args[0]), frozenset(range(2, len(shape_of(node.args[0]))))))


def _strided_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """A view by strides counts on the layout in memory: what it shows must keep all its sizes."""
    for layer in ctx.layers(node.args[0]):
        ctx.pin(node, layer, "is viewed by strides")
    return ()


def _nothing(ctx: Zeros, node: fx.Node) -> Value:
    return ()


# ---------------------------------------------------------------- complex numbers


def _as_complex_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """[..., 2] -> [...]: real and imaginary part go together."""
    last = frozenset({len(shape_of(node.args[0])) - 1})
    layers = positions(ctx, node, ctx.layers(node.args[0]), last, "is one part of a complex number")
    return tidy(layer.squeeze(-1) for layer in layers)


def _as_complex_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    found = []
    for layer in ctx.zeros(node.args[0]):
        first = layer.narrow(-1, 0, 1)
        same = (layer == first).all(-1, keepdim=True)
        found.append(torch.where(same, first, torch.full_like(first, -1)).squeeze(-1))
    return tidy(found)


def _as_real_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    return tuple(layer.unsqueeze(-1) for layer in ctx.layers(node.args[0]))


def _as_real_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    return tuple(layer.unsqueeze(-1) for layer in ctx.zeros(node.args[0]))


# ---------------------------------------------------------------- values that the code makes


def _made_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """Every index of a constant is like every other: its sizes may follow what it meets."""
    sizes: Any = node.args[argument_of_sizes(node)]
    literal_dims = [dim for dim, size in enumerate(sizes) if isinstance(size, int)]
    return ctx.space.made_layers(shape_of(node), literal_dims)


def _counted_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """A range of numbers: each may go with what it meets, which is then a choice of the numbers."""
    return ctx.space.made_layers(shape_of(node), range(len(shape_of(node))))


def argument_of_sizes(node: fx.Node) -> int:
    """Position of the sizes among the arguments of a call that makes a value."""
    return 0 if node.target.overloadpacket in (aten.zeros, aten.ones, aten.full) else 1  # type: ignore[union-attr]


def fill(node: fx.Node) -> float | None:
    """The number that a call fills its result with, if it is one."""
    packet: Any = getattr(node.target, "overloadpacket", None)
    if packet in (aten.zeros, aten.new_zeros, aten.zeros_like, aten.zero, aten.zero_):
        return 0.0
    position = {aten.full: 1, aten.new_full: 2, aten.full_like: 1, aten.fill: 1, aten.fill_: 1}.get(packet)
    value = node.args[position] if position is not None else None
    return float(value) if isinstance(value, (int, float)) else None


def _made_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    return (torch.full([1] * len(shape_of(node)), ALWAYS),) if fill(node) == 0 and shape_of(node) else ()


def _like_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    return ctx.layers(node.args[0])


COUNTED = (aten.arange, aten.linspace, aten.logspace)
"""Operations that make a row of different numbers."""
LIKE = (aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like)
"""Operations that make a value of the shape of another, whose elements they do not read."""


def install() -> None:
    """Enter the rules of this file."""
    add([aten.im2col], Rule(_im2col_labels, _im2col_zeros))
    add([aten.col2im], Rule(_col2im_labels, _col2im_zeros))
    add([aten.unfold], Rule(_unfold_labels, _unfold_zeros))
    add([aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d], Rule(_sampled_labels, _sampled_zeros))
    add([aten.as_strided], Rule(_strided_labels, _nothing))
    add([aten.view_as_complex], Rule(_as_complex_labels, _as_complex_zeros))
    add([aten.view_as_real], Rule(_as_real_labels, _as_real_zeros))
    makers = [aten.zeros, aten.ones, aten.full, aten.new_zeros, aten.new_ones, aten.new_full]
    add_factories(makers, Rule(_made_labels, _made_zeros))
    add_factories(COUNTED, Rule(_counted_labels, _nothing))
    add([*LIKE, aten.bernoulli, aten.fill, aten.zero], Rule(_like_labels, _made_zeros))
