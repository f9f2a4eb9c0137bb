"""Values that cancel: ``(clamp(round(x / s) + z) - z) * s`` is zero where x is, whatever the zero point z.

One operation at a time this cannot be seen, because x + z is not zero. So the element-wise operations behind a value
are evaluated together, on random values of what they start from: where one start at zero makes the result zero every
time, its zeros pass. Grids whose zero point follows the values at hand are of this form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph.labels import Layers, tidy
from geta_core.graph.rules.base import LabelRule, lookup, rule_for
from geta_core.graph.rules.probing import constant, evaluate, random_values, tensor_arguments
from geta_core.graph.rules.windows import fill
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import ALWAYS, Zeros

aten = torch.ops.aten

LARGEST = 64
"""Most operations that are evaluated together."""
_MOVES = (
    *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze),
    *(aten.permute, aten.transpose, aten.t, aten.expand, aten.expand_as, aten.broadcast_to, aten.reshape_as),
    *(aten.view_as, aten.contiguous, aten.detach, aten.detach_, aten.alias, aten.lift_fresh_copy),
)
_CASTS = (aten.to, aten._to_copy, aten.type_as)


@dataclass
class _Places:
    """Which element of each start an element of a value was made from; read by the rules of moves like zeros are."""

    of: dict[fx.Node, dict[fx.Node, Tensor]] = field(default_factory=dict)
    start: fx.Node | None = None

    def zeros(self, value: Any) -> Layers:
        """The places of one start's elements in a value, as a layer."""
        found = self.of.get(value, {}).get(self.start) if self.start is not None else None
        return () if found is None else (found,)


def cancelled(ctx: Zeros, node: fx.Node, elementwise: LabelRule) -> Layers:
    """Zeros of a value that is zero only as the result of several element-wise operations.

    Args:
        ctx: the second pass.
        node: an element-wise operation.
        elementwise: the label rule of element-wise operations, by which they are known.
    """
    cone = _cone(ctx, node, elementwise)
    if cone is None:
        return ()
    inner, starts = cone
    known = {start: torch.zeros(()) if _always_zero(ctx, start) else constant(ctx, start) for start in starts}
    carriers = [start for start in starts if known[start] is None and ctx.zeros(start)]
    if not carriers or not ctx.written.isdisjoint((*inner, *starts)):
        return ()
    places = _followed(inner, [start for start in starts if known[start] is None])
    if places is None:
        return ()
    probes = dict(zip(starts, random_values(starts), strict=True))
    for start, number in known.items():
        if number is not None:
            probes[start] = number.reshape(1).to(probes[start].dtype).expand_as(probes[start])
    found: list[Tensor] = []
    for start in carriers:
        values = {**probes, start: torch.zeros_like(probes[start])}
        if start in places and bool((_value(inner, values) == 0).all()):
            found += _carried(ctx.zeros(start), shape_of(start), places[start])
    return tidy(found)


def _always_zero(ctx: Zeros, node: fx.Node) -> bool:
    return fill(node) == 0 or any(bool((layer == ALWAYS).all()) for layer in ctx.zeros(node))


def _cone(ctx: Zeros, node: fx.Node, elementwise: LabelRule) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """The operations that are evaluated together, in order, and what they start from.

    None if there are too many, or if no start is read twice: then nothing can cancel.
    """
    inner, starts, shared = {node}, set[fx.Node](), False
    left = [node]
    while left:
        for source in _read(left.pop()):
            if source in inner or source in starts:
                shared = True
            elif ctx.zeros(source) or not _joins(source, elementwise):
                starts.add(source)
            else:
                inner.add(source)
                left.append(source)
        if len(inner) > LARGEST:
            return None
    return (sorted(inner), sorted(starts)) if shared else None


def _read(node: fx.Node) -> list[fx.Node]:
    """The arguments whose values an operation reads; of a move or a cast only the first."""
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    return tensor_arguments(node)[: 1 if packet in (*_MOVES, *_CASTS) else None]


def _joins(node: fx.Node, elementwise: LabelRule) -> bool:
    """Whether an operation is evaluated with those that read it."""
    packet = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or packet is None or node.target._schema.is_mutable:  # type: ignore[union-attr]
        return False
    if packet in _MOVES or packet in _CASTS:
        return True
    rule = lookup(node.target)
    random = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
    return rule is not None and rule.labels is elementwise and not random


def _followed(inner: list[fx.Node], starts: list[fx.Node]) -> dict[fx.Node, Tensor] | None:
    """For each start, its element behind each element of the last value; None where two ways disagree."""
    places = _Places()
    for start in starts:
        shape = shape_of(start)
        size = int(torch.tensor(shape).prod()) if shape else 1
        places.of[start] = {start: torch.arange(size).view(shape)}
    for node in inner:
        found: dict[fx.Node, Tensor] = {}
        for source in _read(node):
            for start in places.of.get(source, {}):
                here = _moved(places, node, source, start)
                if start in found and not _agree(found[start], here):
                    return None
                found[start] = torch.broadcast_tensors(found[start], here)[0] if start in found else here
        places.of[node] = found
    return places.of[inner[-1]]


def _moved(places: _Places, node: fx.Node, source: fx.Node, start: fx.Node) -> Tensor:
    here = places.of[source][start]
    if getattr(node.target, "overloadpacket", None) in _MOVES:
        places.start = start
        moved: Any = rule_for(node).zeros(places, node)  # type: ignore[arg-type]
        here = moved[0]
    return here.reshape([1] * (len(shape_of(node)) - here.dim()) + list(here.shape))


def _agree(left: Tensor, right: Tensor) -> bool:
    left, right = torch.broadcast_tensors(left, right)
    return bool((left == right).all())


def _value(inner: list[fx.Node], given: dict[fx.Node, Tensor]) -> Tensor:
    """The last value, of random starts; moves have no part in it."""
    values = dict(given)
    for node in inner:
        packet = node.target.overloadpacket  # type: ignore[union-attr]
        if packet in _MOVES:
            values[node] = values[cast(fx.Node, node.args[0])]
        elif packet in _CASTS:
            values[node] = values[cast(fx.Node, node.args[0])].to(node.meta["val"].dtype)
        else:
            arguments = _read(node)
            values[node] = evaluate(node, arguments, [values[a] for a in arguments])
    return values[inner[-1]]


def _carried(zeros: Layers, shape: tuple[int, ...], places: Tensor) -> list[Tensor]:
    """Zero layers of a start, seen at the result."""
    return [layer.expand(shape).reshape(-1)[places] for layer in zeros]
