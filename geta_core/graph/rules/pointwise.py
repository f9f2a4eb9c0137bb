"""Element-wise operations, recognised by torch's own tag; where zero passes is found by evaluating the op at zero."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, aligned, tidy
from geta_core.graph.rules.base import Rule, Value, add
from geta_core.graph.rules.cancelling import cancelled
from geta_core.graph.rules.probing import constant, tensor_arguments, unbounded_at_zero, zeroing_subsets
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import Zeros, meet

aten = torch.ops.aten


def _labels(ctx: Dependencies, node: fx.Node) -> Layers:
    arguments = tensor_arguments(node)
    letters, out = aligned([shape_of(a) for a in arguments])
    operands = [ctx.operand(a, names) for a, names in zip(arguments, letters, strict=True)]
    return ctx.combine(node, operands, out)


def _zeros(ctx: Zeros, node: fx.Node) -> Layers:
    arguments = tensor_arguments(node)
    rank = len(shape_of(node))
    found: list[Tensor] = []
    numbers = [constant(ctx, argument) for argument in arguments]
    # A quotient of zeros is not zero, whatever the numerator says.
    poles = [layer.unique() for index in unbounded_at_zero(node, numbers) for layer in ctx.zeros(arguments[index])]
    lost = {part for layer in poles for part in layer.tolist() if part >= 0}
    ctx.unbounded |= lost
    for subset in zeroing_subsets(node, numbers):
        layers = ctx.zeros(arguments[subset[0]])
        for index in subset[1:]:
            layers = meet(layers, ctx.zeros(arguments[index]))
        found += [layer.reshape([1] * (rank - layer.dim()) + list(layer.shape)) for layer in layers]
    if not found and len(arguments) > 1:
        return cancelled(ctx, node, _labels)
    if lost:
        gone = torch.tensor(sorted(lost))
        found = [torch.where(torch.isin(layer, gone), torch.full_like(layer, -1), layer) for layer in found]
    return tidy(found)


def _same_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    return ctx.entering(node, ctx.layers(node.args[0]))


def _same_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    return ctx.zeros(node.args[0])


def _getitem_labels(ctx: Dependencies, node: fx.Node) -> Value:
    source, index = node.args
    values = ctx.values[source]  # type: ignore[index]
    return values[index] if isinstance(values, list) else ()  # type: ignore[index]


def _getitem_zeros(ctx: Zeros, node: fx.Node) -> Value:
    source, index = node.args
    values = ctx.values[source]  # type: ignore[index]
    return values[index] if isinstance(values, list) else ()  # type: ignore[index]


def _prelu_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    x, weight = node.args
    rank = len(shape_of(x))
    return ctx.combine(node, [ctx.operand(x, range(rank)), ctx.operand(weight, (1,))], range(rank))


ELEMENTWISE = _labels
"""The label rule of element-wise operations, by which others know them."""


def install() -> None:
    """Enter the rules of this file."""
    add([torch.Tag.pointwise], Rule(_labels, _zeros))
    add([aten.hardswish, aten.hardswish_, aten.relu6, aten.where], Rule(_labels, _zeros))
    add([aten.max.other, aten.min.other], Rule(_labels, _zeros))
    # Second names of element-wise operations, which torch does not tag.
    names = [aten.multiply, aten.divide, aten.true_divide, aten.subtract, aten.absolute, aten.negative, aten.clip]
    logic = [aten.__and__, aten.__or__, aten.__xor__, aten.greater, aten.greater_equal, aten.less, aten.less_equal]
    others = [aten.not_equal, aten.square, aten.fix, aten.float_power, aten.masked_fill, aten.log_sigmoid, aten.rsub]
    more = [aten.selu, aten.celu, aten.polar, aten.complex, aten.isfinite, aten.isnan, aten.isinf]
    add([*names, *logic, *others, *more, aten.rrelu, aten.threshold, aten.nan_to_num], Rule(_labels, _zeros))
    keep = [
        aten.dropout,
        aten.dropout_,
        aten.feature_dropout,
        aten.alpha_dropout,
        aten.contiguous,
        aten.to,
        aten._to_copy,
    ]
    add(
        [
            *keep,
            aten.real,
            aten.imag,
            aten.conj,
            aten.detach,
            aten.detach_,
            aten.alias,
            aten.type_as,
            aten.lift_fresh_copy,
        ],
        Rule(_same_labels, _same_zeros),
    )
    add([operator.getitem], Rule(_getitem_labels, _getitem_zeros))
    add([aten.prelu], Rule(_prelu_labels, _same_zeros))
