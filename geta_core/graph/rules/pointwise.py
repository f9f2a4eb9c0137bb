"""Element-wise operations, recognised by torch's own tag; where zero passes is found by evaluating the op at zero."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from geta_core.graph.dependency import Dependencies, shape_of
from geta_core.graph.labels import Layers, aligned, tidy
from geta_core.graph.rules.base import Rule, Value, add
from geta_core.graph.zeros import Zeros, meet

aten = torch.ops.aten

_PROBES = 257
"""Number of random values at which a multi-operand op is evaluated; odd, so that it broadcasts against nothing else."""


def _tensor_arguments(node: fx.Node) -> list[fx.Node]:
    values = [*node.args, *node.kwargs.values()]
    return [v for v in values if isinstance(v, fx.Node) and isinstance(v.meta.get("val"), Tensor)]


def _labels(ctx: Dependencies, node: fx.Node) -> Layers:
    arguments = _tensor_arguments(node)
    letters, out = aligned([shape_of(a) for a in arguments])
    operands = [ctx.operand(a, names) for a, names in zip(arguments, letters, strict=True)]
    return ctx.combine(node, operands, out)


def _zeros(ctx: Zeros, node: fx.Node) -> Layers:
    arguments = _tensor_arguments(node)
    rank = len(shape_of(node))
    found: list[Tensor] = []
    for subset in zeroing_subsets(node, [constant(ctx, argument) for argument in arguments]):
        layers = ctx.zeros(arguments[subset[0]])
        for index in subset[1:]:
            layers = meet(layers, ctx.zeros(arguments[index]))
        found += [layer.reshape([1] * (rank - layer.dim()) + list(layer.shape)) for layer in layers]
    return tidy(found)


def constant(ctx: Zeros, node: fx.Node) -> Tensor | None:
    """The number behind a value that comes from single numbers in buffers and constants alone, else None.

    Such a number (a zero point, the end of a grid) is a setting; ``finish`` proves the result with its last value.
    """
    if node not in ctx.numbers:
        ctx.numbers[node] = _computed(ctx, node)
    return ctx.numbers[node]


def _computed(ctx: Zeros, node: fx.Node) -> Tensor | None:
    shown = node.meta.get("val")
    if not isinstance(shown, Tensor) or shown.numel() != 1 or node in ctx.capture.data:
        return None
    if node.op == "placeholder":
        name = ctx.capture.names.get(node)
        held = None if name is None or name in ctx.capture.parameters else ctx.capture.tensors[name]
        return held.detach().cpu() if held is not None else None
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        return None
    known = {source: constant(ctx, source) for source in node.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None


def zeroing_subsets(node: fx.Node, constants: Sequence[Tensor | None] = ()) -> list[tuple[int, ...]]:
    """Smallest sets of tensor arguments whose being zero makes the result exactly zero, found by evaluation.

    The other arguments take random values of both signs and many scales (or both truth values), or the number that
    ``constants`` gives.
    """
    arguments = _tensor_arguments(node)
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-3, 3, _PROBES, dtype=torch.float64)
    probes: list[Tensor] = []
    for argument in arguments:
        noise = torch.randn(_PROBES, generator=generator, dtype=torch.float64)
        dtype = argument.meta["val"].dtype
        probes.append(noise > 0 if dtype == torch.bool else (noise * scale).to(dtype))
    for i, number in enumerate(constants):
        if number is not None:
            probes[i] = number.reshape(1).expand(_PROBES)
    found: list[tuple[int, ...]] = []
    for count in range(1, len(arguments) + 1):
        for subset in itertools.combinations(range(len(arguments)), count):
            if any(set(smaller) <= set(subset) for smaller in found):
                continue
            values = [torch.zeros_like(p) if i in subset else p for i, p in enumerate(probes)]
            if bool((_evaluate(node, arguments, values) == 0).all()):
                found.append(subset)
    return found


def _evaluate(node: fx.Node, arguments: list[fx.Node], values: list[Tensor]) -> Tensor:
    queue = iter(values)

    def swap(value: Any) -> Any:
        return next(queue).clone() if isinstance(value, fx.Node) and value in arguments else value

    args = [swap(a) for a in node.args]
    kwargs = {key: swap(v) for key, v in node.kwargs.items()}
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


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
        [*keep, aten.detach, aten.detach_, aten.alias, aten.type_as, aten.lift_fresh_copy],
        Rule(_same_labels, _same_zeros),
    )
    add([operator.getitem], Rule(_getitem_labels, _getitem_zeros))
    add([aten.prelu], Rule(_prelu_labels, _same_zeros))
