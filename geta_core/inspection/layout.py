"""Layered drawing of an acyclic graph: layers, few crossings, long straight lines.

The method is Sugiyama's (1981): longest-path layers, bend points where an edge passes a layer, an order by barycentres,
and coordinates that minimise squared lengths. Each layer's coordinates under its order and distances are a problem of
isotonic regression, solved exactly by pooling adjacent violators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SWEEPS = 12
"""Passes that improve the order."""
RELAXATIONS = 80
"""Passes that improve the coordinates."""
BEND_WIDTH = 22.0
STRAIGHT, SLANTED = 1.0, 0.01
"""Weights of lines between two boxes or two bends, and of those between a box and a bend."""


@dataclass(frozen=True)
class Layout:
    """Where things lie. Units are those of the sizes given."""

    x: Mapping[int, float]
    """Centre of each box."""
    y: Mapping[int, float]
    """Upper edge of each box."""
    bends: Mapping[tuple[int, int], tuple[tuple[float, float], ...]]
    """Points between which an edge runs straight down, from top to bottom; none where it passes no layer."""
    width: float
    height: float


def lay_out(
    sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], gap: tuple[float, float]
) -> Layout:
    """Place boxes so that every edge runs downwards.

    Args:
        sizes: width and height of each box; box i comes before all that depends on it.
        edges: pairs of boxes (i, j), i < j.
        gap: least distance of two boxes side by side, and of two layers.
    """
    layer = _layers(len(sizes), edges)
    graph = _Layered(sizes, edges, layer)
    graph.order()
    x = graph.coordinates(gap[0])
    return _finish(graph, x, gap)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from the top; what has no input stands right above what reads it."""
    layer = [0] * count
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        layer[b] = max(layer[b], layer[a] + 1)
    after: dict[int, list[int]] = {}
    for a, b in edges:
        after.setdefault(a, []).append(b)
    entered = {b for _, b in edges}
    for box in range(count):
        if box not in entered and box in after:
            layer[box] = min(layer[b] for b in after[box]) - 1
    return layer


class _Layered:
    """Boxes (0 .. count - 1) and bends (from count on) in rows, each edge cut into pieces between adjacent rows."""

    def __init__(
        self, sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], layer: Sequence[int]
    ) -> None:
        self.sizes, self.count = sizes, len(sizes)
        self.rows: list[list[int]] = [[] for _ in range(max(layer, default=0) + 1)]
        self.chains: dict[tuple[int, int], list[int]] = {}
        self.up: list[list[int]] = [[] for _ in sizes]
        self.down: list[list[int]] = [[] for _ in sizes]
        for box, row in enumerate(layer):
            self.rows[row].append(box)
        for a, b in edges:
            chain = [a]
            for row in range(layer[a] + 1, layer[b]):
                chain.append(len(self.up))
                self.rows[row].append(chain[-1])
                self.up.append([])
                self.down.append([])
            chain.append(b)
            self.chains[a, b] = chain
            for upper, lower in zip(chain, chain[1:], strict=False):
                self.down[upper].append(lower)
                self.up[lower].append(upper)

    def width(self, item: int) -> float:
        """Width of a box or bend."""
        return self.sizes[item][0] if item < self.count else BEND_WIDTH

    def order(self) -> None:
        """Sort each row by the mean position of the neighbours in the row before, down and up in turn."""
        best, rows = self._crossings(), [list(row) for row in self.rows]
        for sweep in range(SWEEPS):
            downwards = sweep % 2 == 0
            place: dict[int, int] = {}
            for row in self.rows if downwards else reversed(self.rows):
                near = self.up if downwards else self.down
                centre = {
                    item: sum(place[other] for other in near[item]) / len(near[item]) if near[item] else float(at)
                    for at, item in enumerate(row)
                }
                row.sort(key=centre.__getitem__)
                place = {item: at for at, item in enumerate(row)}
            found = self._crossings()
            if found < best:
                best, rows = found, [list(row) for row in self.rows]
        self.rows = rows

    def _crossings(self) -> int:
        total = 0
        for upper, lower in zip(self.rows, self.rows[1:], strict=False):
            place = {item: at for at, item in enumerate(lower)}
            ends = [place[other] for item in upper for other in sorted(self.down[item], key=place.__getitem__)]
            total += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
        return total

    def coordinates(self, gap: float) -> list[float]:
        """Centres that minimise the weighted squared lengths of all pieces."""
        x = [0.0] * len(self.up)
        for row in self.rows:
            offsets = self._offsets(row, gap)
            for item, offset in zip(row, offsets, strict=True):
                x[item] = offset - (offsets[-1] if offsets else 0.0) / 2
        for sweep in range(RELAXATIONS):
            for row in self.rows if sweep % 2 == 0 else reversed(self.rows):
                self._relax(row, x, gap)
        return x

    def _offsets(self, row: Sequence[int], gap: float) -> list[float]:
        """Least distance of each item from the first of its row."""
        offsets = [0.0] * min(1, len(row))
        for left, right in zip(row, row[1:], strict=False):
            offsets.append(offsets[-1] + (self.width(left) + self.width(right)) / 2 + gap)
        return offsets

    def _relax(self, row: Sequence[int], x: list[float], gap: float) -> None:
        offsets = self._offsets(row, gap)
        wanted: list[tuple[float, float]] = []
        for item, offset in zip(row, offsets, strict=True):
            near = [(other, self._weight(item, other)) for other in (*self.up[item], *self.down[item])]
            weight = sum(each for _, each in near)
            centre = sum(x[other] * each for other, each in near) / weight if weight else x[item]
            wanted.append((centre - offset, weight or SLANTED))
        for item, value, offset in zip(row, isotonic(wanted), offsets, strict=True):
            x[item] = value + offset

    def _weight(self, a: int, b: int) -> float:
        return STRAIGHT if (a < self.count) == (b < self.count) else SLANTED


def isotonic(wanted: Sequence[tuple[float, float]]) -> list[float]:
    """The nondecreasing values nearest to ``wanted`` (pairs of value and weight) in weighted squares."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in wanted:
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [value for value, _, count in pools for _ in range(count)]


def _finish(graph: _Layered, x: list[float], gap: tuple[float, float]) -> Layout:
    """Shift to the origin, stack the rows, and list the bends of each edge."""
    left = min((x[i] - graph.width(i) / 2 for i in range(len(x))), default=0.0)
    right = max((x[i] + graph.width(i) / 2 for i in range(len(x))), default=0.0)
    top, y, spans = 0.0, {}, {}
    for row in graph.rows:
        height = max((graph.sizes[item][1] for item in row if item < graph.count), default=0.0)
        for item in row:
            spans[item] = (top, top + height)
            if item < graph.count:
                y[item] = top + (height - graph.sizes[item][1]) / 2
        top += height + gap[1]
    bends = {
        edge: tuple((x[item] - left, end) for item in chain[1:-1] for end in spans[item])
        for edge, chain in graph.chains.items()
    }
    return Layout({i: x[i] - left for i in range(graph.count)}, y, bends, right - left, max(0.0, top - gap[1]))
