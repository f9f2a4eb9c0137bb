"""Operations that only move elements: the same operation runs on the labels and on the zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph.capture import where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand, collapse, tidy, varying
from geta_core.graph.rules.base import Rule, Value, add, add_factories
from geta_core.graph.sizes import literal, shape_of
from geta_core.graph.zeros import ALWAYS, Zeros, meet

aten = torch.ops.aten


def _move(node: fx.Node, layers: Layers) -> Value:
    """Run the node's own operation on every layer."""
    shape, arguments, keywords = shape_of(node.args[0]), literal(node.args[1:]), literal(node.kwargs)
    full = [layer.expand(shape) for layer in layers]
    if node.target.overloadpacket in (aten.view, aten._unsafe_view):  # type: ignore[union-attr]
        full = [layer.contiguous() for layer in full]
    moved = [node.target(layer, *arguments, **keywords) for layer in full]  # type: ignore[operator]
    if isinstance(node.meta["val"], (list, tuple)):
        count = len(node.meta["val"])
        return [tidy(result[i] for result in moved) for i in range(count)]
    return tidy(moved)


def _view_labels(ctx: Dependencies, node: fx.Node) -> Value:
    return _move(node, ctx.layers(node.args[0]))


def _view_zeros(ctx: Zeros, node: fx.Node) -> Value:
    return _move(node, ctx.zeros(node.args[0]))


def _as_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """The shape of another value: what it shows is its own."""
    return _shaped(node, ctx.layers(node.args[0]))


def _as_zeros(ctx: Zeros, node: fx.Node) -> Value:
    return _shaped(node, ctx.zeros(node.args[0]))


def _shaped(node: fx.Node, layers: Layers) -> Layers:
    return tidy(layer.expand(shape_of(node.args[0])).reshape(shape_of(node)) for layer in layers)


def _expand_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """Sizes that are broadcast carry no label; new leading dimensions appear on the left.

    A constant of the code repeats itself as often as what it meets needs; ``expand_as`` names what that is.
    """
    rank, layers = len(shape_of(node)), ctx.entering(node, ctx.layers(node.args[0]))
    found = tuple(layer.reshape([1] * (rank - layer.dim()) + list(layer.shape)) for layer in layers)
    before = (1,) * (rank - len(shape_of(node.args[0]))) + shape_of(node.args[0])
    repeated = frozenset(dim for dim in range(rank) if before[dim] == 1 and shape_of(node)[dim] > 1)
    if node.target.overloadpacket is aten.expand_as:  # type: ignore[union-attr]
        like = ctx.layers(node.args[1])
        return tidy((*found, *(layer for layer in like if varying(layer) <= repeated)))
    if all(map(ctx.space.is_made, found)):
        sizes: Any = node.args[1]
        new = [d for d in sorted(repeated) if isinstance(sizes[d], int)]
        return tidy((*found, *ctx.space.made_layers(shape_of(node), new)))
    return found


def _expand_zeros(ctx: Zeros, node: fx.Node) -> Value:
    rank = len(shape_of(node))
    return tuple(layer.reshape([1] * (rank - layer.dim()) + list(layer.shape)) for layer in ctx.zeros(node.args[0]))


def _repeat_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """Of several indices each copy goes with what it is a copy of; copies of a single one go with what they meet.

    The latter are a mask that is the same for every head, or keys that all heads share.
    """
    moved = cast(Layers, _move(node, ctx.layers(node.args[0])))
    return tidy((*moved, *ctx.space.made_layers(shape_of(node), repeated_dims(node))))


def repeated_dims(node: fx.Node) -> list[int]:
    """The dimensions of a repetition that hold copies of one index, as often as a number of the code says."""
    rank, source = len(shape_of(node)), shape_of(node.args[0])
    before = (1,) * (rank - len(source)) + source
    if node.target.overloadpacket is aten.repeat_interleave:  # type: ignore[union-attr]
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
        fixed = isinstance(node.args[1], int) and dim is not None
        counted = {int(cast(int, dim)) % rank} if fixed else set()
    else:
        counted = {d for d, count in enumerate(cast(Sequence[Any], node.args[1])) if isinstance(count, int)}
    return [d for d in sorted(counted) if before[d] == 1 and shape_of(node)[d] > 1]


# ---------------------------------------------------------------- shuffles


def _pixel_shuffle_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """The r x r channels that become the pixels of one channel go together."""
    factor = cast(int, node.args[1])
    return _move(node, _in_blocks(ctx, node, ctx.layers(node.args[0]), -3, (-1, factor * factor), 1))


def _channel_shuffle_labels(ctx: Dependencies, node: fx.Node) -> Value:
    """Every group gives the same channels, so that the shuffled order stays."""
    groups = cast(int, node.args[1])
    return _move(node, _in_blocks(ctx, node, ctx.layers(node.args[0]), 1, (groups, -1), 0))


def _in_blocks(ctx: Dependencies, node: fx.Node, layers: Layers, dim: int, sizes: tuple[int, int], tied: int) -> Layers:
    """Split dimension ``dim`` in two and tie the labels along one of the two."""
    found = []
    for layer in layers:
        dim %= layer.dim()
        if dim in varying(layer):
            blocks = layer.unflatten(dim, sizes)
            first = ctx.space.tie_across(blocks, (dim + tied,), f"must stay a block, at {where(node)}")
            layer = first.expand_as(blocks).flatten(dim, dim + 1)
        found.append(layer)
    return tuple(found)


# ---------------------------------------------------------------- cat and stack


def _parts(node: fx.Node) -> tuple[list[fx.Node], int, bool]:
    stacked = node.target.overloadpacket is aten.stack  # type: ignore[union-attr]
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    dim %= len(shape_of(node))
    # An empty part (the rest of a head that is rotated whole, no class token) has no say in what may be removed.
    held = [p for p in parts if stacked or (shape_of(p) != (0,) and shape_of(p)[dim] > 0)]
    return held or parts, dim, stacked


def _joined(parts: Sequence[Layers], shapes: Sequence[Sequence[int]], dim: int) -> Layers:
    """Concatenate layers that vary along the same other dimensions, -1 where a part has none."""
    levels: list[list[Tensor]] = []
    for rest in dict.fromkeys(varying(layer) - {dim} for layers in parts for layer in layers):
        alike = [[layer for layer in layers if varying(layer) - {dim} == rest] for layers in parts]
        for level in range(max(map(len, alike))):
            missing = torch.full([1] * len(shapes[0]), -1)
            levels.append([found[level] if level < len(found) else missing for found in alike])
    joined = []
    for pieces in levels:
        others = [max(piece.shape[i] for piece in pieces) for i in range(len(shapes[0]))]
        full = [[s if i == dim else others[i] for i, s in enumerate(shape)] for shape in shapes]
        joined.append(torch.cat([piece.expand(size) for piece, size in zip(pieces, full, strict=True)], dim))
    return tidy(joined)


def _follow_blocks(ctx: Dependencies, parts: Sequence[fx.Node], dim: int) -> None:
    """Copies that are joined to blocks (the rotated part of a key that all heads share) go with the heads.

    A part that repeats one index along a dimension gets labels there, if another part has such beside the joined one.
    """
    blocks = [varying(layer) - {dim} for part in parts for layer in ctx.layers(part) if dim in varying(layer)]
    for part in parts:
        source = part.args[0] if part.args else None
        if getattr(part.target, "overloadpacket", None) not in (aten.expand, aten.broadcast_to):
            continue
        held = {d for layer in ctx.layers(part) for d in varying(layer)}
        before = (1,) * (len(shape_of(part)) - len(shape_of(source))) + shape_of(source)
        copies = {d for d in range(len(before)) if before[d] == 1 and isinstance(part.args[1][d], int)}  # type: ignore[index]
        for rest in dict.fromkeys(blocks):
            if rest and rest <= copies - held:
                made = ctx.space.made_layers(shape_of(part), sorted(rest))
                ctx.values[part], held = (*ctx.layers(part), *made), held | rest


def _cat_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    parts, dim, stacked = _parts(node)
    if not stacked:
        _follow_blocks(ctx, parts, dim)
    grow: Callable[[Tensor], Tensor] = (lambda layer: layer.unsqueeze(dim)) if stacked else (lambda layer: layer)
    layers = [tuple(map(grow, ctx.layers(part))) for part in parts]
    shapes = [(*s[:dim], 1, *s[dim:]) if stacked else s for s in map(shape_of, parts)]
    # Dimensions that vary together with the joined one anywhere are joined; the others are tied across the parts.
    mixed = {varying(layer) - {dim} for found in layers for layer in found if dim in varying(layer)}
    joined = [
        # A part of one index has nothing to lose but itself: it stays.
        tuple(a for a in found if varying(a) - {dim} in mixed and (varying(a) or shape[dim] > 1))
        for found, shape in zip(layers, shapes, strict=True)
    ]
    rest = [
        tuple(a for a in found if not any(a is b for b in chosen)) for found, chosen in zip(layers, joined, strict=True)
    ]
    whole = _across(ctx, node, [p in ctx.capture.data for p in parts], rest, shapes, dim)
    if node in ctx.capture.data:
        for part, found in zip(parts, joined, strict=True):
            ctx.passed += [] if part in ctx.capture.data else [layer[layer >= 0] for layer in found]
    return tidy((*_joined(joined, shapes, dim), *whole))


def _across(
    ctx: Dependencies,
    node: fx.Node,
    data: Sequence[bool],
    layers: Sequence[Layers],
    shapes: Sequence[Sequence[int]],
    dim: int,
) -> Layers:
    """Tie the dimensions that are not concatenated."""
    rank = len(shape_of(node))
    operands = []
    for found, shape, flag in zip(layers, shapes, data, strict=True):
        plain = tuple(1 if i == dim else size for i, size in enumerate(shape))
        operands.append(Operand(found, tuple(range(rank)), plain, flag))
    return ctx.combine(node, operands, range(rank))


def _cat_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    parts, dim, stacked = _parts(node)
    grow: Callable[[Tensor], Tensor] = (lambda layer: layer.unsqueeze(dim)) if stacked else (lambda layer: layer)
    layers = [tuple(map(grow, ctx.zeros(part))) for part in parts]
    shapes = [(*s[:dim], 1, *s[dim:]) if stacked else s for s in map(shape_of, parts)]
    everywhere: Layers = tuple(layer for layer in layers[0] if dim not in varying(layer))
    for other in layers[1:]:
        everywhere = meet(everywhere, tuple(layer for layer in other if dim not in varying(layer)))
    found = list(everywhere)
    depth = max((len(part) for part in layers), default=0)
    for level in range(depth):
        pieces = []
        for part, shape in zip(layers, shapes, strict=True):
            piece = part[level] if level < len(part) else torch.full([1] * len(shape), -1)
            pieces.append(piece.expand(list(shape)))
        found.append(collapse(torch.cat(pieces, dim)))
    return tidy(found)


# ---------------------------------------------------------------- padding


def _pad_amounts(node: fx.Node) -> tuple[list[int], float | None]:
    """Amounts from the last dimension backwards, and the constant (None: copies of the input)."""
    amounts: Any = literal(node.args[1])
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if packet is aten.constant_pad_nd:
        value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
        return list(amounts), float(value)  # type: ignore[arg-type]
    mode = (
        (node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")) if packet is aten.pad else "copy"
    )
    if mode != "constant":
        return list(amounts), None
    value = (node.args[3] if len(node.args) > 3 else node.kwargs.get("value")) or 0
    return list(amounts), float(value)  # type: ignore[arg-type]


def _padded(layers: Layers, shape: Sequence[int], amounts: list[int], fill: int, anywhere: bool) -> Layers:
    """Pad layers; a dimension along which a layer does not vary is padded only if ``anywhere``."""
    found = []
    for layer in layers:
        pads: list[int] = []
        for i in range(0, len(amounts), 2):
            dim = layer.dim() - 1 - i // 2
            grows = any(amounts[i : i + 2]) and (anywhere or layer.shape[dim] > 1)
            layer = layer.expand([shape[d] if d == dim and grows else size for d, size in enumerate(layer.shape)])
            pads += amounts[i : i + 2] if grows else [0, 0]
        found.append(torch.nn.functional.pad(layer, pads, value=fill))
    return tidy(found)


def _pad_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """A pad inside a head belongs to the head, which goes as a whole; any other has no label."""
    amounts, _ = _pad_amounts(node)
    layers = ctx.layers(node.args[0])
    if ctx.heads == "head":
        why = f"is padded inside its head, at {where(node)}"
        inner = [varying(layer) & _padded_dims(layer, amounts) for layer in layers]
        layers = tuple(
            ctx.space.tie_across(layer, dims, why) if dims and varying(layer) - dims else layer
            for layer, dims in zip(layers, inner, strict=True)
        )
    return _padded(layers, shape_of(node.args[0]), amounts, -1, anywhere=False)


def _pad_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    amounts, value = _pad_amounts(node)
    fill = ALWAYS if value == 0 else -1
    if value is None:
        return tuple(layer for layer in ctx.zeros(node.args[0]) if not varying(layer) & _padded_dims(layer, amounts))
    return _padded(ctx.zeros(node.args[0]), shape_of(node.args[0]), amounts, fill, anywhere=value != 0)


def _padded_dims(layer: Tensor, amounts: list[int]) -> set[int]:
    return {layer.dim() - 1 - i // 2 for i in range(len(amounts)) if amounts[i]}


def install() -> None:
    """Enter the rules of this file."""
    views = [
        aten.view,
        aten.reshape,
        aten._unsafe_view,
        aten.permute,
        aten.transpose,
        aten.t,
        aten.flatten,
        aten.unflatten,
    ]
    pieces = [aten.unbind, aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.slice, aten.select]
    moves = [
        aten.narrow,
        aten.unsqueeze,
        aten.squeeze,
        aten.movedim,
        aten.flip,
        aten.roll,
        aten.swapaxes,
        aten.swapdims,
        aten.mT,
    ]
    moves += [aten.squeeze_copy, aten.numpy_T, aten.mH, aten.adjoint, aten.rot90]
    pieces += [
        aten.unsafe_split,
        aten.unsafe_split_with_sizes,
        aten.unsafe_chunk,
        aten.hsplit,
        aten.vsplit,
        aten.dsplit,
    ]
    extra = [aten.pixel_unshuffle, aten.tile]
    add_factories([aten.repeat, aten.repeat_interleave], Rule(_repeat_labels, _view_zeros))
    add([aten.pixel_shuffle], Rule(_pixel_shuffle_labels, _view_zeros))
    add([aten.channel_shuffle], Rule(_channel_shuffle_labels, _view_zeros))
    add([*views, *pieces, *moves, *extra, aten.diagonal], Rule(_view_labels, _view_zeros))
    add([aten.expand_as], Rule(_expand_labels, _expand_zeros))
    add_factories([aten.expand, aten.broadcast_to], Rule(_expand_labels, _expand_zeros))
    add([aten.cat, aten.concat, aten.concatenate, aten.stack], Rule(_cat_labels, _cat_zeros))
    add([aten.pad, aten.constant_pad_nd], Rule(_pad_labels, _pad_zeros))
    add([aten.reshape_as, aten.view_as], Rule(_as_labels, _as_zeros))
