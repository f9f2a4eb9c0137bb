"""Largest and smallest values. Where zeros among the values cannot be seen in what is made of an extreme, they may go.

So it is with the largest of absolute values, and with ranges that always hold zero: ``x.amax().clamp(min=0)``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph.dependency import Dependencies
from geta_core.graph.rules.along import results
from geta_core.graph.rules.base import Rule, Value, add, lookup
from geta_core.graph.rules.pointwise import ELEMENTWISE
from geta_core.graph.rules.probing import evaluate, random_values, tensor_arguments
from geta_core.graph.rules.reductions import passing_zeros, reduced_dims, statistic_labels, sum_labels
from geta_core.graph.rules.windows import LIKE, fill
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import Zeros

aten = torch.ops.aten

_SIZES = (aten.abs, aten.abs_, aten.square, aten.relu, aten.relu_)
_SAME = (aten.detach, aten.detach_, aten.alias, aten.clone, aten.to, aten.contiguous)
_MOVES = (aten.view, aten.reshape, aten.flatten, aten.permute, aten.transpose, aten.unsqueeze, aten.squeeze, *_SAME)


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _is_size(node: Any) -> bool:
    """Whether a value is an absolute value, seen through moves: it has no negative elements."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if _packet(node) in _SIZES:
            return True
        if _packet(node) not in _MOVES:
            return False
        node = node.args[0]
    return False


def ignores_zeros(node: fx.Node) -> bool:
    """Whether a further zero among the values changes nothing that is made of this extreme."""
    smallest = _packet(node) in (aten.amin, aten.min)
    if not isinstance(node.meta["val"], (list, tuple)):
        return (not smallest and _is_size(node.args[0])) or _beside_zero(node, 1 if smallest else -1)
    if _packet(node) is aten.aminmax:
        sides = {0: 1, 1: -1}
    else:
        # Where the extreme lies is a place among the values, which a removed value changes.
        sides = {0: 1 if smallest else -1}
    sizes = not smallest and _is_size(node.args[0])
    parts = [(user, cast(int, user.args[1])) for user in node.users]
    return all(
        part in sides and ((sizes and sides[part] < 0) or _beside_zero(user, sides[part])) for user, part in parts
    )


def _beside_zero(node: fx.Node, sign: int) -> bool:
    """Whether all that reads a value takes every value of this sign for a zero."""
    return all(_takes_for_zero(user, node, sign) for user in node.users)


def _takes_for_zero(user: fx.Node, node: fx.Node, sign: int) -> bool:
    """Whether an operation, or what reads it, gives the same at zero as at every value of this sign; by evaluation."""
    if _packet(user) in LIKE:
        return True
    if _packet(user) in _MOVES:
        return user.args[0] is node and _beside_zero(user, sign)
    rule = lookup(user.target) if user.op == "call_function" else None
    arguments = tensor_arguments(user)
    if rule is None or rule.labels is not ELEMENTWISE or arguments.count(node) != 1:
        return False
    probes = random_values(arguments)
    for i, argument in enumerate(arguments):
        if argument is not node and argument.op == "call_function" and fill(argument) == 0:
            probes[i] = torch.zeros_like(probes[i])
    place = arguments.index(node)
    signed, zero = (_at(user, arguments, probes, place, kind) for kind in (sign, 0))
    if bool((signed == zero).all()):
        return True
    if len(arguments) > 1 or bool((zero != 0).any()):
        return False
    same = {int(value) for value in torch.unique(torch.sign(signed))}
    return len(same) == 1 and same != {0} and _beside_zero(user, same.pop())


def _at(user: fx.Node, arguments: list[fx.Node], probes: list[Tensor], place: int, sign: int) -> Tensor:
    values = list(probes)
    values[place] = values[place].abs() * sign
    return evaluate(user, arguments, values)


def _labels(ctx: Dependencies, node: fx.Node) -> Value:
    """In an extreme of a weight, what is removed is zeroed as well, also where the weight reads it."""
    if not ignores_zeros(node):
        return statistic_labels(ctx, node)
    if node not in ctx.capture.data:
        ctx.passed += [layer[layer >= 0] for layer in ctx.layers(node.args[0])]
    return results(node, sum_labels(ctx, node))


def _zeros(ctx: Zeros, node: fx.Node) -> Value:
    if ignores_zeros(node):
        letters = range(len(shape_of(node.args[0])))
        ctx.require_zero(node, [(node.args[0], ctx.first.operand(node.args[0], letters))], reduced_dims(node))
    return passing_zeros(ctx, node)


def install() -> None:
    """Enter the rules of this file."""
    add([aten.amax, aten.max, aten.amin, aten.min, aten.aminmax], Rule(_labels, _zeros))
