"""Heads and widths: the dimensions of weights that no residual stream shares, and whether all of them can be pruned.

Every dimension of a weight counts as inner, thus has to be prunable, unless the graph shows that it is something else.
What heads do (they meet in a product of two activations) outweighs everything but a router, so that a head which must
stay is counted as one that is not covered, never as something else. Nothing here asks what can be pruned until the end.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph import GroupGraph
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand, Slot, are_rows, to_letters, varying
from geta_core.graph.sizes import shape_of

aten = torch.ops.aten

_CASTS = (aten.clone, aten.contiguous, aten.detach, aten.alias, aten.to, aten._to_copy, aten.dropout, aten.type_as)
_VIEWS = (aten.view, aten.reshape, aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.flatten)
_MORE = (aten.unflatten, aten.unsqueeze, aten.squeeze, aten.slice, aten.select, aten.expand, aten.roll, aten.pad)
_MOVES = (*_CASTS, *_VIEWS, *_MORE)
_SCALED = (aten.mul, aten.div)
_ADDED = (aten.add, aten.add_)
_LOOKED_UP = (aten.index, aten.embedding, aten.index_select, aten.gather)
_CHOSEN = {aten.topk: 2, aten.sort: 1, aten.argsort: 1, aten.argmax: 1, aten.max: 1}
"""Operations that find where the largest values are, and the position of their dimension."""
_JOINED = (aten.cat, aten.stack)
_CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution)


@dataclass(frozen=True)
class Product:
    """One call of ``combine``: the operands of an einsum-like operation, and the letters that it sums over."""

    node: fx.Node
    operands: tuple[Operand, ...]
    active: tuple[bool, ...]
    """Whether each operand is an activation; else it is a weight, or rows of one that an activation chose."""
    contracted: frozenset[int]

    @property
    def count(self) -> int:
        """Number of letters."""
        return 1 + max((letter for o in self.operands for letter in o.letters), default=-1)

    def layers(self, index: int) -> list[Tensor]:
        """Layers of an operand in the space of all letters."""
        return [to_letters(layer, self.operands[index].letters, self.count) for layer in self.operands[index].layers]

    def shared(self, indices: Iterable[int]) -> frozenset[int]:
        """Letters with more than one index in at least two of some operands."""
        chosen = [self.operands[i] for i in indices]
        return frozenset(x for x in range(self.count) if sum(o.size(x) > 1 for o in chosen) > 1)


class _Recorder(Dependencies):
    """The first pass once more, with its products written down; the ids are those of the first time."""

    def _start(self) -> None:
        super()._start()
        self.products: list[Product] = []
        self.sources: dict[int, tuple[Operand, Any]] = {}

    def operand(self, value: Any, letters: Sequence[int]) -> Operand:
        """An argument as a factor, and where it came from."""
        found = super().operand(value, letters)
        self.sources[id(found)] = found, value
        return found

    def combine(self, node: fx.Node, operands: Sequence[Operand], out: Sequence[int]) -> Layers:
        """Labels of a product, which is written down."""
        letters = frozenset(letter for o in operands for letter in o.letters)
        active = tuple(o.data and not self._is_weight(o) for o in operands)
        self.products.append(Product(node, tuple(operands), active, letters - frozenset(out)))
        return super().combine(node, operands, out)

    def _is_weight(self, operand: Operand) -> bool:
        held = self.sources.get(id(operand))
        return held is not None and isinstance(held[1], fx.Node) and is_weight(self, held[1])


def is_weight(first: Dependencies, node: fx.Node) -> bool:
    """Whether a value is a parameter, or rows of one that an index chose, seen through moves."""
    while node.op == "call_function" and _packet(node) in (*_MOVES, *_LOOKED_UP):
        node = cast(fx.Node, node.args[0])
    return node not in first.capture.data


@dataclass
class Inner:
    """What was found; a dimension is written ``name[dim]``."""

    covered: list[str] = field(default_factory=list)
    """Heads and widths of which every index can be pruned."""
    missing: dict[str, list[str]] = field(default_factory=dict)
    """The others, with the reasons."""
    outer: dict[str, list[str]] = field(default_factory=dict)
    """Dimensions that are neither, with what they are."""


def inner_dimensions(graph: GroupGraph, heads: str = "head") -> Inner:
    """Sort the dimensions of every weight with two or more inside repeated blocks."""
    kinds = Kinds(graph, heads)
    found = Inner()
    for slot in sorted(graph.first.space.slots.values(), key=lambda slot: (slot.name, slot.dim)):
        if not kinds.is_matrix(slot) or not re.search(r"\.\d+\.", f".{slot.name}"):
            continue
        parts = graph.component[slot.offset : slot.offset + slot.size]
        what = {int(part): kinds.of(int(part), slot) for part in parts.unique()}
        name = f"{slot.name}[{slot.dim}]"
        inner = [part for part, kind in what.items() if kind in INNER]
        pinned = [part for part in inner if int(graph.number[part]) < 0]
        if pinned:
            reasons = {graph.reasons.get(part, "is not zeroed as a whole").partition(", at ")[0] for part in pinned}
            found.missing[name] = sorted(reasons)
        elif len(inner) == 1:
            found.missing[name] = ["all of its indices go together"]
        elif inner:
            found.covered.append(name)
        else:
            found.outer[name] = sorted(set(what.values()))
    return found


HEAD, WIDTH = "head", "width"
INNER = (HEAD, WIDTH, "values")
ROUTED, STREAM, WITHIN, WINDOW = "choice of experts", "stream", "within a head", "window"
OUTPUT, ROWS, PLACES, VALUE = "output", "rows of a table", "positions", "values"
INSIDE = "summed over in a product of activations"
WAY, LAST, STEM = "on the way to heads", "after the last residual stream", "before the first residual stream"
CONV, INPUT = "between convolutions", "written by no weight"
ORDER = (ROUTED, HEAD, STREAM, OUTPUT, ROWS, PLACES, WITHIN, INSIDE, VALUE, WAY, LAST, INPUT, STEM, CONV)


class Kinds:
    """What each component of a graph is."""

    def __init__(self, graph: GroupGraph, heads: str) -> None:
        self.graph, self.capture = graph, graph.capture
        self.first = _Recorder(graph.capture, heads, graph.first.prune_normalized)
        self.first.run()
        if self.first.space.slots != graph.first.space.slots:
            raise AssertionError("the first pass gave other ids the second time")
        self.windows = self._empty(graph.first.space.size)
        self.sums = 0
        """Bits of the nodes that are or make a residual stream."""
        self.flags = {kind: self._empty(graph.count) for kind in ORDER}
        self._mark_nodes()
        self._mark_products()
        self._mark_streams()
        self._mark_weights()

    @staticmethod
    def _empty(size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.bool)

    def of(self, part: int, slot: Slot) -> str:
        """The kind of a component in a dimension of a weight."""
        if bool(self.windows[slot.offset : slot.offset + slot.size].any()):
            return WINDOW
        return next((kind for kind in ORDER if bool(self.flags[kind][part])), WIDTH)

    def is_matrix(self, slot: Slot) -> bool:
        """Whether a slot is a dimension of a parameter that has another of several indices, windows left aside."""
        shape = self.capture.tensors[slot.name].shape
        held = (self.first.space.slots.get((slot.name, dim)) for dim in range(len(shape)))
        wide = [other for other in held if other is not None and not bool(self.windows[other.offset])]
        return slot.name in self.capture.parameters and len(wide) > 1

    def _mark(self, kind: str, layers: Iterable[Tensor]) -> None:
        for layer in layers:
            self.flags[kind][self.graph.component[layer[layer >= 0]]] = True

    def _layers(self, node: Any) -> list[Tensor]:
        value = self.first.values.get(node, ()) if isinstance(node, fx.Node) else ()
        return [layer for part in value for layer in part] if isinstance(value, list) else list(value)

    # ------------------------------------------------------------ what single operations say

    def _mark_nodes(self) -> None:
        for node in self.capture.graph.nodes:
            packet = _packet(node)
            if node.op == "output":
                self._mark(OUTPUT, (layer for leaf in node.all_input_nodes for layer in self._layers(leaf)))
            elif packet in _CHOSEN and (packet is not aten.max or isinstance(node.meta["val"], (list, tuple))):
                rank, place = len(shape_of(node.args[0])), _CHOSEN[packet]
                dim = node.args[place] if len(node.args) > place else node.kwargs.get("dim", -1)
                chosen = {int(dim) % rank} if isinstance(dim, int) else set(range(rank))
                self._mark(ROUTED, (layer for layer in self._layers(node.args[0]) if varying(layer) <= chosen))
            elif packet in _LOOKED_UP and is_weight(self.first, cast(fx.Node, node.args[0])):
                dims = _looked_up(node)
                self._mark(ROWS, (layer for layer in self._layers(node.args[0]) if varying(layer) <= dims))
            elif packet in _CONVOLUTIONS:
                for layer in self._layers(node.args[1]):
                    if varying(layer) and min(varying(layer)) > 1:
                        self.windows[layer[layer >= 0]] = True

    # ------------------------------------------------------------ what products say

    def _mark_products(self) -> None:
        for product in self.first.products:
            self._mark(WITHIN, self._within(product))
        for product in self.first.products:
            self._mark(PLACES, _facing_places(product))
            active = [i for i, flag in enumerate(product.active) if flag]
            facing = product.shared(active)
            if facing & product.contracted:
                layers = [layer for i in active for layer in map(self._heads, product.layers(i))]
                self._mark(HEAD, (layer for layer in layers if varying(layer) & facing - product.contracted))
                self._mark(INSIDE, (layer for layer in layers if varying(layer) & product.contracted))
                self._mark(VALUE, layers)

    def _heads(self, layer: Tensor) -> Tensor:
        parts = self.graph.component[layer.clamp(min=0)]
        return torch.where(self.flags[WITHIN][parts], torch.full_like(layer, -1), layer)

    def _within(self, product: Product) -> Iterator[Tensor]:
        """Labels that all heads share: they face whole heads, each of which is one component, or were flattened."""
        layers = [(i, layer) for i in range(len(product.operands)) for layer in product.layers(i)]
        for (i, rows), (j, shared) in itertools.permutations(layers, 2):
            # Rows that go with what they share are no heads: nothing of such a dimension can be removed.
            if i == j and are_rows(rows, shared):
                together = torch.isin(self.graph.component[shared], self.graph.component[rows])
                yield from () if bool(together.any()) else (shared,)
        for i, layer in layers:
            for j, block in layers:
                if i == j or not varying(layer) or not varying(layer) < varying(block):
                    continue
                parts = torch.where(block >= 0, self.graph.component[block.clamp(min=0)], block)
                row = parts
                for dim in varying(layer):
                    row = row.narrow(dim, 0, 1)
                whole = bool((parts == row).all()) and not bool((row == row.flatten()[0]).all())
                if whole and not bool(torch.isin(self.graph.component[layer[layer >= 0]], parts).any()):
                    yield layer

    # ------------------------------------------------------------ residual streams

    @property
    def _ancestors(self) -> dict[fx.Node, int]:
        """For each node, a set of bits: itself and all that it is computed from."""
        if not hasattr(self, "_bits"):
            self._place = {node: 1 << i for i, node in enumerate(self.capture.graph.nodes)}
            self._bits: dict[fx.Node, int] = {}
            for node, own in self._place.items():
                for source in node.all_input_nodes:
                    own |= self._bits[source]
                self._bits[node] = own
        return self._bits

    def _mark_streams(self) -> None:
        """``x + f(x)``, where f ends in a weight that reads what was made of x, and x itself is added."""
        mixing = {p.node for p in self.first.products if self._mixes(p)}
        for node in self.capture.graph.nodes:
            if _packet(node) not in _ADDED or node not in self.capture.data:
                continue
            pair = [value for value in node.args[:2] if isinstance(value, fx.Node) and value in self.capture.data]
            if len(pair) < 2:
                continue
            for kept, added in (pair, pair[::-1]):
                root = self._place[self._moved(kept)] if self._ancestors else 0
                sources = (source for weight in _written_by(added, mixing, self.capture.data) for source in weight)
                if any(self._ancestors[source] & root for source in sources):
                    self._mark(STREAM, (layer for value in (node, *pair) for layer in self._layers(value)))
                    self.sums |= self._place[node] | root

    def _moved(self, node: fx.Node) -> fx.Node:
        """The value that was only moved, or scaled by a number or a parameter."""
        while node.op == "call_function":
            sources = [source for source in node.all_input_nodes if source in self.capture.data]
            if _packet(node) not in (*_MOVES, *_SCALED) or len(sources) != 1:
                break
            node = sources[0]
        return node

    def _mixes(self, product: Product) -> bool:
        """Whether an activation meets a weight in a sum over channels."""
        weights = [
            i
            for i, flag in enumerate(product.active)
            if not flag and any(not self.first.space.is_constant(layer) for layer in product.operands[i].layers)
        ]
        active = [i for i, flag in enumerate(product.active) if flag]
        return any(product.shared((i, j)) & product.contracted for i in weights for j in active)

    def _fed(self) -> set[int]:
        """The components of what weights write that come after some residual stream."""
        fed: set[int] = set()
        for product in self.first.products:
            if self._mixes(product) and self._ancestors[product.node] & self.sums:
                for i, active in enumerate(product.active):
                    for layer in () if active else product.layers(i):
                        if not varying(layer) & product.contracted:
                            fed.update(self.graph.component[layer[layer >= 0]].tolist())
        return fed

    # ------------------------------------------------------------ what weights say

    def _mark_weights(self) -> None:
        slots: dict[str, list[Slot]] = {}
        for slot in self.first.space.slots.values():
            if self.is_matrix(slot):
                slots.setdefault(slot.name, []).append(slot)
        read, written = self._ids(self.first.consumed), self._ids(self.first.passed)
        readers: dict[int, set[str]] = {}
        reads: dict[str, set[int]] = {}
        writes: dict[str, set[int]] = {}
        holders: dict[int, set[str]] = {}
        for name, dims in slots.items():
            ids = torch.cat([torch.arange(slot.offset, slot.offset + slot.size) for slot in dims])
            ids = ids[~self.windows[ids]]
            writes[name] = set(self.graph.component[ids[written[ids]]].tolist())
            reads[name] = set(self.graph.component[ids[read[ids]]].tolist())
            for part in reads[name]:
                readers.setdefault(part, set()).add(name)
            for part in self.graph.component[ids].unique().tolist():
                holders.setdefault(part, set()).add(name)
        wide = {name for name in slots if self._has_window(slots[name])}
        made = set().union(*writes.values())
        fed = self._fed()
        for part, names in holders.items():
            writers = {name for name in names if part in writes[name]}
            self.flags[CONV][part] = names <= wide if part in readers else False
            self.flags[STEM][part] = bool(writers) and writers <= wide and part not in fed
            self.flags[INPUT][part] = part not in made
        inside = self.flags[HEAD] | self.flags[WITHIN] | self.flags[INSIDE]
        self._spread(WAY, readers, writes, inside | (self.flags[VALUE] & ~self.flags[STREAM]))
        after = {part: names for part, names in readers.items() if part in fed}
        self._spread(LAST, after, writes, self.flags[OUTPUT] & ~self.flags[STREAM])

    def _spread(self, kind: str, readers: dict[int, set[str]], writes: dict[str, set[int]], inside: Tensor) -> None:
        """Mark what every weight that reads it turns into what is inside, directly or by way of other such channels."""
        before = -1
        while before != (before := int(inside.sum())):
            for part, names in readers.items():
                if bool(self.flags[STREAM][part]):
                    continue
                if all(writes[name] and all(bool(inside[other]) for other in writes[name]) for name in names):
                    inside[part] = self.flags[kind][part] = True

    def _ids(self, parts: Iterable[Tensor]) -> Tensor:
        flags = self._empty(self.graph.first.space.size)
        for ids in parts:
            flags[ids] = True
        return flags

    def _has_window(self, slots: Sequence[Slot]) -> bool:
        """Whether a weight is that of a convolution over several places and several channels."""
        places = [slot.size for slot in slots if bool(self.windows[slot.offset])]
        return math.prod(places) > 1


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _facing_places(product: Product) -> Iterator[Tensor]:
    """Labels of a table that is added to several indices of an activation which no weight made: places in it."""
    for i, applied in enumerate(product.active):
        for j, active in enumerate(product.active):
            if applied or not active or product.contracted:
                continue
            known = {letter for layer in product.layers(j) for letter in varying(layer)} | product.contracted
            bare = {x for x in range(product.count) if product.operands[j].size(x) > 1} - known
            yield from (layer for layer in product.layers(i) if varying(layer) and varying(layer) <= bare)


def _looked_up(node: fx.Node) -> set[int]:
    """The dimensions of a table that an index chooses from."""
    if _packet(node) is aten.embedding:
        return {0}
    if _packet(node) is aten.index:
        return {dim for dim, index in enumerate(cast(Sequence[Any], node.args[1])) if index is not None}
    return {int(cast(int, node.args[1])) % len(shape_of(node.args[0]))}


def _written_by(node: fx.Node, mixing: set[fx.Node], data: set[fx.Node]) -> Iterator[list[fx.Node]]:
    """What each of the weights reads that write a value, element by element, each channel by itself."""
    seen, queue = {node}, [node]
    while queue:
        here = queue.pop()
        sources = [source for source in here.all_input_nodes if source in data]
        if here in mixing:
            yield sources
            continue
        tagged = isinstance(here.target, torch._ops.OpOverload) and torch.Tag.pointwise in here.target.tags
        if len(sources) == 1 or tagged or _packet(here) in _JOINED:
            queue += [source for source in sources if source not in seen]
            seen.update(sources)
