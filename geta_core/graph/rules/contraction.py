"""Linear maps: linear, matmul, convolutions, attention. Each is an einsum whose summed indices are only cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from geta_core.errors import UnsupportedOpError
from geta_core.graph.capture import source_line, where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand, tidy, varying
from geta_core.graph.rules.base import Rule, add, argument
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import Zeros, meet

aten = torch.ops.aten


def _plus_labels(ctx: Dependencies, node: fx.Node, layers: Layers, bias: Any, dim: int) -> Layers:
    """Tie a bias vector to dimension ``dim`` of a result."""
    if not isinstance(bias, fx.Node):
        return layers
    shape = shape_of(node)
    dim %= len(shape)
    return ctx.combine(
        node, [Operand(layers, tuple(range(len(shape))), shape), ctx.operand(bias, (dim,))], range(len(shape))
    )


def _plus_zeros(ctx: Zeros, layers: Layers, bias: Any, after: int) -> Layers:
    """Meet with a bias vector that ``after`` further dimensions follow."""
    if not isinstance(bias, fx.Node):
        return layers
    return meet(layers, tuple(b.reshape([*b.shape, *[1] * after]) for b in ctx.zeros(bias)))


# ---------------------------------------------------------------- linear and matmul


def _linear_letters(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, int], tuple[int, ...]]:
    rank = len(shape_of(node.args[0]))
    x = tuple(range(rank))
    return x, (rank, rank - 1), (*x[:-1], rank)


def _linear_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    x, w, out = _linear_letters(node)
    layers = ctx.combine(node, [ctx.operand(node.args[0], x), ctx.operand(node.args[1], w)], out)
    return _plus_labels(ctx, node, layers, argument(node, 2, "bias"), -1)


def _linear_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    x, w, out = _linear_letters(node)
    pairs = [(node.args[0], ctx.first.operand(node.args[0], x)), (node.args[1], ctx.first.operand(node.args[1], w))]
    return _plus_zeros(ctx, ctx.contract(node, pairs, out), argument(node, 2, "bias"), 0)


def _matmul_letters(left: Any, right: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    a, b = len(shape_of(left)), len(shape_of(right))
    batch = max(a, b, 2) - 2
    row, inner, column = batch, batch + 1, batch + 2
    x = (inner,) if a == 1 else (*range(batch - (a - 2), batch), row, inner)
    y = (inner,) if b == 1 else (*range(batch - (b - 2), batch), inner, column)
    out = (*range(batch), *([row] if a > 1 else []), *([column] if b > 1 else []))
    return x, y, out


def _matmul(position: int) -> Rule:
    """The rule of a product of arguments ``position`` and the next; an argument 0 before them is added."""

    def labels(ctx: Dependencies, node: fx.Node) -> Layers:
        left, right = node.args[position : position + 2]
        x, y, out = _matmul_letters(left, right)
        layers = ctx.combine(node, [ctx.operand(left, x), ctx.operand(right, y)], out)
        if not position:
            return layers
        rank, added = len(shape_of(node)), node.args[0]
        names = range(rank - len(shape_of(added)), rank)
        return ctx.combine(
            node, [Operand(layers, tuple(range(rank)), shape_of(node)), ctx.operand(added, names)], range(rank)
        )

    def zeros(ctx: Zeros, node: fx.Node) -> Layers:
        left, right = node.args[position : position + 2]
        x, y, out = _matmul_letters(left, right)
        layers = ctx.contract(node, [(left, ctx.first.operand(left, x)), (right, ctx.first.operand(right, y))], out)
        return meet(layers, ctx.zeros(node.args[0])) if position else layers

    return Rule(labels, zeros)


# ---------------------------------------------------------------- convolutions


def _conv_arguments(node: fx.Node) -> tuple[fx.Node, fx.Node, Any, int, bool]:
    """Input, weight, bias, groups, transposed."""
    x, w = node.args[:2]
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    transposed = packet in (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
    if packet is aten.convolution:
        transposed, groups = bool(argument(node, 6, "transposed", False)), argument(node, 8, "groups", 1)
    else:
        groups = argument(node, 6, "groups", 1)
    return x, w, argument(node, 2, "bias"), int(groups), transposed  # type: ignore[return-value]


def _per_example(ctx: Dependencies, node: fx.Node, x: fx.Node, channel: int) -> tuple[Layers, Layers]:
    """Layers of an input that vary over its examples alone, and the others.

    Heads that are examples of one convolution share its parameters: a head goes whole, and the parameters stay.
    """
    rows, rest = list[Tensor](), list[Tensor]()
    for layer in ctx.layers(x):
        if channel == 1 and ctx.heads == "head" and varying(layer) in ({0}, {0, channel}):
            rows.append(ctx.space.tie_across(layer, (channel,), f"shares a convolution, at {where(node)}"))
        else:
            rest.append(layer)
    return tuple(rows), tuple(rest)


def _per_channel(ctx: Dependencies, node: fx.Node, layers: Layers, keep: tuple[int, ...]) -> list[Tensor]:
    """Layers that vary along ``keep`` only; others are tied to it, or pinned if they do not touch it."""
    kept = []
    for layer in layers:
        others = varying(layer) - set(keep)
        if others and varying(layer) & set(keep):
            layer = ctx.space.tie_across(layer, others, f"varies over positions, at {where(node)}")
        elif others:
            ctx.pin(node, layer, "is a position of a convolution's window")
            continue
        kept.append(layer)
    return kept


def _grouped(layer: Tensor, dim: int, groups: int) -> Tensor:
    """[.., C, ..] -> [groups, C // groups] for a layer that varies along ``dim`` only."""
    return layer.reshape(-1).reshape(groups, -1) if layer.shape[dim] > 1 else layer.reshape(1, 1)


def _conv_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    x, w, bias, groups, transposed = _conv_arguments(node)
    rank = len(shape_of(w))
    channel = len(shape_of(x)) - (rank - 1)
    rows_of_x, rest = _per_example(ctx, node, x, channel)
    xs = [_grouped(a, channel, groups) for a in _per_channel(ctx, node, rest, (channel,))]
    ws = _per_channel(ctx, node, ctx.layers(w), (0, 1))
    grouped_dim, plain_dim = 0, 1
    rows = [_grouped(a, grouped_dim, groups) for a in ws if varying(a) == {grouped_dim}]
    columns = [a.reshape(1, -1) for a in ws if varying(a) == {plain_dim}]
    sizes = shape_of(w)
    group_rows = (groups, sizes[0] // groups)
    # letters: 0 group, 1 input index in the group, 2 output index in the group
    inner, outer = (rows, columns) if transposed else (columns, rows)
    x_operand = Operand(tuple(xs), (0, 1), (groups, shape_of(x)[channel] // groups))
    row_shape, column_shape = group_rows, (1, sizes[1])
    in_shape, out_shape = (row_shape, column_shape) if transposed else (column_shape, row_shape)
    data = w in ctx.capture.data
    operands = [
        x_operand,
        Operand(tuple(inner), (0, 1), in_shape, data),
        Operand(tuple(outer), (0, 2), out_shape, data),
    ]
    depthwise = groups > 1 and x_operand.shape[1] == 1 and out_shape[1] == 1 and in_shape[0] * out_shape[0] >= groups
    if groups > 1 and not depthwise:
        operands = _by_groups(ctx, node, operands)
    found = ctx.combine(node, operands, (0, 2))
    total = sizes[1] * groups if transposed else sizes[0]
    shape = [1] * len(shape_of(node))
    layers = []
    for layer in found:
        shape[channel] = total
        layers.append(layer.expand(groups, total // groups).reshape(shape))
    return tidy((*rows_of_x, *_plus_labels(ctx, node, tidy(layers), bias, channel)))


def _by_groups(ctx: Dependencies, node: fx.Node, operands: list[Operand]) -> list[Operand]:
    """How the groups of a convolution lose channels: whole, if it reads heads, or each of them the same.

    Until a pass has shown that it reads heads, its groups make different channels; if it does not, the next pass ties
    them from the start.
    """
    if node in ctx.joint:
        return [_equal_groups(ctx, node, operand) for operand in operands]
    if node in ctx.whole:
        return [_whole_groups(ctx, node, operand, read=operand is operands[0]) for operand in operands]
    blocks = [layer for layer in operands[0].layers if len(varying(layer)) > 1]
    if ctx.heads != "head" or not blocks:
        return [_equal_groups(ctx, node, operand) for operand in operands]
    ctx.grouped += [(node, block, block.narrow(0, 0, 1)) for block in blocks]
    return [operand for operand in operands if operand.letters == (0, 2)]


def _equal_groups(ctx: Dependencies, node: fx.Node, operand: Operand) -> Operand:
    """Every group of a grouped convolution keeps the same number of channels: the same index goes from each."""
    message = f"must leave equal groups, at {where(node)}"
    if not operand.data and node in ctx.capture.data:
        # The ties below narrow the layers to one group; the rows of the others reach the result as well.
        ctx.passed += [layer[layer >= 0] for layer in operand.layers if operand.letters == (0, 2)]
    layers = tuple(ctx.space.tie_across(layer, (0,), message) for layer in operand.layers)
    return Operand(layers, operand.letters, (1, operand.shape[1]), operand.data)


def _whole_groups(ctx: Dependencies, node: fx.Node, operand: Operand, *, read: bool) -> Operand:
    """The groups of a convolution that reads heads go with them; what each reads and makes inside stays.

    Where the heads have to stay, this is taken back: the same index may still go from what each group makes.
    """
    layers = []
    for layer in operand.layers:
        if 0 in varying(layer):
            layers.append(ctx.space.tie_across(layer, (1,), f"shares a group with others, at {where(node)}"))
            if read:
                ctx.parted.append((node, layers[-1]))
        else:
            ctx.pin(node, layer, "is shared by several heads")
    return Operand(tuple(layers), operand.letters, operand.shape, operand.data)


def _conv_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    x, w, bias, groups, transposed = _conv_arguments(node)
    rank, channel = len(shape_of(w)), len(shape_of(x)) - (len(shape_of(w)) - 1)
    total = shape_of(node)[channel]
    depthwise = groups > 1 and groups == shape_of(x)[channel]
    if not depthwise:
        letters = tuple(range(len(shape_of(x))))
        # The window slides over the input, so that its dimensions face none of the input's.
        own = tuple(range(len(letters), len(letters) + rank))
        pairs = [(x, ctx.first.operand(x, letters)), (w, ctx.first.operand(w, own))]
        ctx.require_zero(node, pairs, frozenset({channel, own[0 if transposed else 1]}))
    found = []
    for layer in ctx.zeros(w):
        if varying(layer) <= {1 if transposed else 0}:
            shape = [1] * len(shape_of(node))
            flat = layer.reshape(-1)
            shape[channel] = flat.numel() if not transposed or flat.numel() == 1 else total
            found.append((flat.repeat(groups) if transposed and flat.numel() > 1 else flat).reshape(shape))
    if depthwise and total == groups:
        found += [layer for layer in ctx.zeros(x) if varying(layer) <= {channel}]
    if channel == 1:
        found += [layer for layer in ctx.zeros(x) if varying(layer) == {0}]
    return _plus_zeros(ctx, tidy(found), bias, rank - 2)


# ---------------------------------------------------------------- attention


def _attention_letters(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    rank = len(shape_of(node.args[0]))
    batch = tuple(range(rank - 2))
    m, s, d, n = rank - 2, rank - 1, rank, rank + 1
    return (*batch, m, d), (*batch, s, d), (*batch, s, n), (*batch, m, n), s


def _attention_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    q, k, v = node.args[:3]
    lq, lk, lv, out, s = _attention_letters(node)
    mask = argument(node, 3, "attn_mask")
    scored = (*lq[:-1], s)
    keys, values = (_repeated(node, ctx.operand(value, names)) for value, names in ((k, lk), (v, lv)))
    scores = ctx.combine(node, [ctx.operand(q, lq), keys], scored)
    shape = (*shape_of(q)[:-1], keys.shape[-2])
    if isinstance(mask, fx.Node):
        names = scored[len(scored) - len(shape_of(mask)) :]
        scores = ctx.combine(node, [Operand(scores, scored, shape), ctx.operand(mask, names)], scored)
    for layer in scores:
        if layer.shape[-1] > 1:
            ctx.pin(node, layer, "enters a softmax")
    return ctx.combine(node, [Operand(scores, scored, shape), values], out)


def _repeated(node: fx.Node, operand: Operand) -> Operand:
    """Keys or values whose heads are shared by several heads of queries, as if each were repeated."""
    count, wanted = operand.shape[-3] if len(operand.shape) > 2 else 1, shape_of(node.args[0])
    if len(wanted) < 3 or count == wanted[-3] or not argument(node, 7, "enable_gqa", False):
        return operand
    layers = tuple(a.repeat_interleave(wanted[-3] // count, -3) if a.shape[-3] > 1 else a for a in operand.layers)
    return Operand(layers, operand.letters, (*operand.shape[:-3], wanted[-3], *operand.shape[-2:]), operand.data)


def _attention_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    q, k, v = node.args[:3]
    lq, lk, lv, out, s = _attention_letters(node)
    ctx.contract(node, [(q, ctx.first.operand(q, lq)), (k, ctx.first.operand(k, lk))], (*lq[:-1], s))
    found = ctx.contract(node, [(v, ctx.first.operand(v, lv))], out)
    repeats = shape_of(q)[-3] // shape_of(v)[-3] if len(shape_of(q)) > 2 else 1
    return tuple(z.repeat_interleave(repeats, -3) if repeats > 1 and z.shape[-3] > 1 else z for z in found)


# ---------------------------------------------------------------- einsum


def einsum_terms(node: fx.Node) -> tuple[list[Any], list[tuple[int, ...]], tuple[int, ...]]:
    """Operands of an einsum, the letters of each as numbers, and those of the result; an ellipsis has letters too."""
    equation, values = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    letters = sorted(set(equation) - set(",->."))
    free = [len(shape_of(v)) - len(t.replace("...", "")) for v, t in zip(values, terms, strict=True) if "..." in t]
    # Dimensions behind an ellipsis get letters of their own, counted from the right like in broadcasting.
    hidden = [chr(0x100 + i) for i in range(max(free, default=0))]
    terms = [
        t.replace("...", "".join(hidden[len(hidden) - len(shape_of(v)) + len(t.replace("...", "")) :]))
        for v, t in zip(values, terms, strict=True)
    ]
    right = right.replace("...", "".join(hidden))
    if not arrow:
        right = "".join(hidden) + "".join(c for c in letters if left.count(c) == 1)
    if any(len(set(term)) < len(term) for term in terms):
        raise UnsupportedOpError(
            f"einsum {equation!r} takes a diagonal, which has no dependency rule, in {where(node)}, "
            f"at {source_line(node)}; use torch.diagonal"
        )
    index = {letter: i for i, letter in enumerate([*hidden, *letters])}
    return values, [tuple(index[c] for c in term) for term in terms], tuple(index[c] for c in right)


def _einsum_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    values, terms, out = einsum_terms(node)
    return ctx.combine(node, [ctx.operand(v, t) for v, t in zip(values, terms, strict=True)], out)


def _einsum_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    values, terms, out = einsum_terms(node)
    return ctx.contract(node, [(v, ctx.first.operand(v, t)) for v, t in zip(values, terms, strict=True)], out)


def install() -> None:
    """Enter the rules of this file."""
    add([aten.linear], Rule(_linear_labels, _linear_zeros))
    add([aten.matmul, aten.bmm, aten.mm, aten.mv, aten.dot], _matmul(0))
    add([aten.addmm, aten.baddbmm], _matmul(1))
    convolutions = [aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution]
    transposed = [aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d]
    add([*convolutions, *transposed], Rule(_conv_labels, _conv_zeros))
    add([aten.scaled_dot_product_attention], Rule(_attention_labels, _attention_zeros))
    add([aten.einsum], Rule(_einsum_labels, _einsum_zeros))
