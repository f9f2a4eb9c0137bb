"""Operations along some dimensions and independent of the others: sums up to a place, sorting, looking up, transforms.

Indices along the dimensions that an operation mixes are positions and must stay; whole rows of them may go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

from geta_core.graph.capture import where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand, tidy, varying
from geta_core.graph.rules.base import Rule, Value, add, argument
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import Zeros, meet

aten = torch.ops.aten

Mixed = Callable[[fx.Node, fx.Node], frozenset[int]]
"""The dimensions of an argument (second) that an operation (first) mixes."""


def positions(ctx: Dependencies, node: fx.Node, layers: Layers, dims: frozenset[int], what: str) -> Layers:
    """Layers of a value whose indices along ``dims`` are positions: parts of them stay, whole blocks of them may go."""
    kept = []
    for layer in layers:
        inner = varying(layer) & dims
        if inner and varying(layer) - inner:
            layer = ctx.space.tie_across(layer, sorted(inner), f"{what} whole, at {where(node)}")
        elif inner:
            ctx.pin(node, layer, what)
            continue
        kept.append(layer)
    return tuple(kept)


def _tensors(node: fx.Node) -> list[fx.Node]:
    """Tensor arguments with dimensions."""
    return [v for v in (*node.args, *node.kwargs.values()) if isinstance(v, fx.Node) and shape_of(v)]


def results(node: fx.Node, layers: Layers) -> Value:
    """The same layers for every result of an operation."""
    value = node.meta["val"]
    return [layers for _ in value] if isinstance(value, (list, tuple)) else layers


def _rank(node: fx.Node) -> int:
    value = node.meta["val"]
    return len((value[0] if isinstance(value, (list, tuple)) else value).shape)


def along(mixed: Mixed, what: str, *, zeros: Sequence[int] | None = None) -> Rule:
    """The rule of an operation that mixes some dimensions of the arguments that have the result's rank.

    Args:
        mixed: which dimensions.
        what: completes "the group ..." in messages.
        zeros: positions of the arguments that, all zero, make the first result zero; None if nothing does.
    """

    def labels(ctx: Dependencies, node: fx.Node) -> Value:
        rank = _rank(node)
        operands, fresh = [Operand((), tuple(range(rank)), (1,) * rank)], rank
        for value in _tensors(node):
            if len(shape_of(value)) != rank:
                for layer in ctx.layers(value):
                    ctx.pin(node, layer, what)
                continue
            dims = mixed(node, value)
            layers = positions(ctx, node, ctx.layers(value), dims, what)
            # A dimension that is mixed gets a letter of its own: it faces nothing.
            names = tuple(fresh + i if i in dims else i for i in range(len(shape_of(value))))
            fresh += rank
            operands.append(Operand(layers, names, shape_of(value), value in ctx.capture.data))
        return results(node, ctx.combine(node, operands, range(rank)))

    def passing(ctx: Zeros, node: fx.Node) -> Value:
        found: Layers = ()
        for count, position in enumerate(zeros or ()):
            value = cast(fx.Node, node.args[position])
            layers = tuple(z for z in ctx.zeros(value) if not varying(z) & mixed(node, value))
            found = layers if not count else meet(found, layers)
        others = node.meta["val"]
        return [found, *[()] * (len(others) - 1)] if isinstance(others, (list, tuple)) else found

    return Rule(labels, passing)


# ---------------------------------------------------------------- which dimensions


def one(position: int, default: int | None = None) -> Mixed:
    """The dimension named by an argument."""

    def mixed(node: fx.Node, value: fx.Node) -> frozenset[int]:
        dim = argument(node, position, "dim", default)
        rank = len(shape_of(value))
        return frozenset(range(rank)) if dim is None else frozenset({int(dim) % rank})

    return mixed


def looked_up(node: fx.Node, value: fx.Node) -> frozenset[int]:
    """The dimension that an index replaces, and those where the arguments have different sizes."""
    place = 2 if node.target.overloadpacket is aten.take_along_dim else 1  # type: ignore[union-attr]
    dim = int(cast(int, argument(node, place, "dim"))) % len(shape_of(value))
    sizes = [shape_of(v) for v in _tensors(node) if len(shape_of(v)) == len(shape_of(value))]
    different = {i for i in range(len(shape_of(value))) if len({s[i] for s in sizes}) > 1}
    return frozenset(different | {dim})


def last_two(node: fx.Node, value: fx.Node) -> frozenset[int]:
    """Rows and columns of matrices."""
    rank = len(shape_of(value))
    return frozenset({rank - 2, rank - 1})


def transformed(*default: int) -> Mixed:
    """The dimensions of a Fourier transform; all of them if none is named."""

    def mixed(node: fx.Node, value: fx.Node) -> frozenset[int]:
        rank = len(shape_of(value))
        dims = argument(node, 2, "dim", default or range(rank))
        dims = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
        return frozenset(int(d) % rank for d in dims)

    return mixed


# ---------------------------------------------------------------- choice of rows


def _index_select_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    source, dim, index = node.args
    dims = frozenset({int(cast(int, dim)) % max(1, len(shape_of(source)))})
    for layer in ctx.layers(index):
        ctx.pin(node, layer, "is used as an index")
    return positions(ctx, node, ctx.entering(node, ctx.layers(source)), dims, "is looked up by an index tensor")


def _index_select_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    source, dim = node.args[:2]
    dims = {int(cast(int, dim)) % max(1, len(shape_of(source)))}
    return tuple(layer for layer in ctx.zeros(source) if not varying(layer) & dims)


# ---------------------------------------------------------------- writing by an index


def _written_letters(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...], frozenset[int]]:
    """Letters of the target and of the written values, and the target's dimensions that are indexed."""
    rank = len(shape_of(node.args[0]))
    indices: list[Any] = list(cast(Any, node.args[1]))
    taken, dim = [], 0
    for index in indices:
        boolean = index is not None and index.meta["val"].dtype == torch.bool
        width = len(shape_of(index)) if boolean else 1
        if index is not None:
            taken += list(range(dim, dim + width))
        dim += width
    chosen = torch.broadcast_shapes(
        *((2,) if index.meta["val"].dtype == torch.bool else shape_of(index) for index in indices if index is not None)
    )
    places = tuple(range(rank, rank + len(chosen)))
    rest = [i for i in range(rank) if i not in taken]
    adjacent = bool(taken) and taken == list(range(taken[0], taken[-1] + 1))
    front = [i for i in rest if i < taken[0]] if adjacent else []
    result = (*front, *places, *(i for i in rest if i not in front))
    count = len(shape_of(node.args[2]))
    return tuple(range(rank)), result[len(result) - count :] if count else (), frozenset(taken)


def _index_put_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    target, indices, values = node.args[:3]
    for index in cast(Sequence[Any], indices):
        for layer in ctx.layers(index):
            ctx.pin(node, layer, "is used as an index")
    names, written, dims = _written_letters(node)
    why = "is written by an index tensor"
    kept = positions(ctx, node, ctx.layers(target), dims, why)
    inner = frozenset(i for i, letter in enumerate(written) if letter >= len(names))
    new = positions(ctx, node, ctx.layers(values), inner, why)
    shape = tuple(1 if i in dims else size for i, size in enumerate(shape_of(target)))
    operands = [
        Operand(kept, names, shape, target in ctx.capture.data),
        Operand(new, written, shape_of(values), values in ctx.capture.data),
    ]
    return ctx.combine(node, operands, names)


def _index_put_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    target, _, values = node.args[:3]
    names, written, dims = _written_letters(node)
    rest = {letter: i for i, letter in enumerate(written) if letter < len(names)}
    brought = []
    for layer in ctx.zeros(values):
        if varying(layer) <= set(rest.values()):
            shape = [layer.shape[rest[i]] if i in rest else 1 for i in names]
            brought.append(layer.reshape(shape))
    kept = tuple(layer for layer in ctx.zeros(target) if not varying(layer) & dims)
    return meet(kept, tuple(brought))


def _write_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """``x.copy_(y)``: x is y from here on."""
    target, source = cast(list[fx.Node], node.args[:2])
    rank = len(shape_of(target))
    names = range(rank - len(shape_of(source)), rank)
    return ctx.combine(node, [ctx.operand(target, range(rank)), ctx.operand(source, names)], range(rank))


def _write_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    return tidy(ctx.zeros(node.args[1]))


def install() -> None:
    """Enter the rules of this file."""
    running = along(one(1), "is a position of a running sum or product", zeros=(0,))
    add([aten.cumsum, aten.cumprod, aten.cummax, aten.cummin], running)
    add([aten.logcumsumexp], along(one(1), "enters a sum of exponentials"))
    add([aten.sort], along(one(1, -1), "is a position that is sorted", zeros=(0,)))
    add([aten.msort], along(lambda node, value: frozenset({0}), "is a position that is sorted", zeros=(0,)))
    add([aten.argsort], along(one(1, -1), "is a position that is sorted"))
    add([aten.topk], along(one(2, -1), "is a position that is chosen by its value", zeros=(0,)))
    add([aten.tril, aten.triu], along(last_two, "is a position of a triangle", zeros=(0,)))
    found = "is looked up by an index tensor"
    add([aten.gather, aten.take_along_dim], along(looked_up, found, zeros=(0,)))
    written = "is written by an index tensor"
    add(
        [aten.scatter_add, aten.scatter_reduce, aten.index_add, aten.index_copy],
        along(looked_up, written, zeros=(0, 3)),
    )
    add([aten.scatter], along(looked_up, written))
    add([aten.scatter.src, aten.scatter_.src], along(looked_up, written, zeros=(0, 3)))
    add([aten.index_select], Rule(_index_select_labels, _index_select_zeros))
    add([aten.index_put], Rule(_index_put_labels, _index_put_zeros))
    add([aten.copy], Rule(_write_labels, _write_zeros))
    what = "is a position of a Fourier transform"
    add([aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn], along(transformed(), what, zeros=(0,)))
    add([aten.fft_fft2, aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2], along(transformed(-2, -1), what, zeros=(0,)))
    add([aten.fft_fft, aten.fft_ifft, aten.fft_rfft, aten.fft_irfft], along(transformed(-1), what, zeros=(0,)))
