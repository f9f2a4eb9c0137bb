"""Layered drawing of an acyclic graph: layers, few crossings, long straight lines.

The method is Sugiyama's (1981): longest-path layers, bend points where an edge passes a layer, an order by barycentres,
and coordinates that minimise squared lengths. Each layer's coordinates under its order and distances are a problem of
isotonic regression, solved exactly by pooling adjacent violators.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SWEEPS = 12
"""Passes that improve the order."""
ROUNDS, RELAXATIONS = 8, 6
"""Rounds that improve the coordinates, and passes over the rows in each."""
BEND_WIDTH = 22.0
LOOSE = 0.01
"""How little a bend pushes a box away, and how little it is drawn to its boxes against other bends."""


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


def lay_out(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], gap: tuple[float, float]) -> Layout:
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
        self._spot: dict[int, tuple[list[int], int]] = {}
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
            for upper, lower in itertools.pairwise(chain):
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
        self._spot = {item: (row, at) for row in self.rows for at, item in enumerate(row)}
        lines = self._lines()
        for number in range(ROUNDS):
            for sweep in range(RELAXATIONS):
                for row in self.rows if sweep % 2 == 0 else reversed(self.rows):
                    self._relax(row, x, gap)
            for line in lines:
                # Until the end boxes take no notice of bends, which then give way.
                blind = number < ROUNDS - 1 and line[0] < self.count
                self._straighten(line, sum(x[item] for item in line) / len(line), x, gap, blind=blind)
        self._gather(lines, x, gap)
        return x

    def _gather(self, lines: Sequence[Sequence[int]], x: list[float], gap: float) -> None:
        """Draw what stands aside to its neighbours, now that the main lines stand still."""
        lined = {item for line in lines for item in line}
        for _ in range(3):
            for box in set(range(self.count)) - lined:
                near = [other for other in (*self.up[box], *self.down[box]) if other < self.count]
                if near:
                    self._straighten([box], sum(x[other] for other in near) / len(near), x, gap)
            for (a, b), chain in self.chains.items():
                if len(chain) > 2:
                    self._straighten(chain[1:-1], (x[a] + x[b]) / 2, x, gap)

    def _lines(self) -> list[list[int]]:
        """Items that should stand straight below each other: boxes along the main path, and the bends of an edge."""
        below = {box: self._main(box) for box in range(self.count)}
        starts = sorted(set(below) - {box for box in below.values() if box is not None})
        lines = []
        for start in starts:
            line: list[int] = []
            box: int | None = start
            while box is not None:
                line.append(box)
                box = below[box]
            lines.append(line)
        return [line for line in (*lines, *(chain[1:-1] for chain in self.chains.values())) if len(line) > 1]

    def _main(self, box: int) -> int | None:
        """The box below that continues a box's line: of those linked most it must be alone, seen from either side."""
        below = self._busiest(self.down[box])
        return below if below is not None and self._busiest(self.up[below]) == box else None

    def _busiest(self, items: Sequence[int]) -> int | None:
        degree = {item: self._degree(item) for item in items if item < self.count}
        best = [item for item, found in degree.items() if found == max(degree.values())]
        return best[0] if len(best) == 1 else None

    def _degree(self, item: int) -> int:
        """Neighbours of the same kind in the rows around."""
        return sum((other < self.count) == (item < self.count) for other in (*self.up[item], *self.down[item]))

    def _straighten(self, line: Sequence[int], aim: float, x: list[float], gap: float, *, blind: bool = False) -> None:
        """Give a line one coordinate near ``aim``, as far as the neighbours in every row leave room for it."""
        low, high = float("-inf"), float("inf")
        for item in line:
            row, at = self._spot[item]
            if at > 0 and not (blind and row[at - 1] >= self.count):
                low = max(low, x[row[at - 1]] + (self.width(row[at - 1]) + self.width(item)) / 2 + gap)
            if at + 1 < len(row) and not (blind and row[at + 1] >= self.count):
                high = min(high, x[row[at + 1]] - (self.width(row[at + 1]) + self.width(item)) / 2 - gap)
        if low <= high:
            for item in line:
                x[item] = min(max(aim, low), high)

    def _offsets(self, row: Sequence[int], gap: float) -> list[float]:
        """Least distance of each item from the first of its row."""
        offsets = [0.0] * min(1, len(row))
        for left, right in itertools.pairwise(row):
            offsets.append(offsets[-1] + (self.width(left) + self.width(right)) / 2 + gap)
        return offsets

    def _relax(self, row: Sequence[int], x: list[float], gap: float) -> None:
        offsets = self._offsets(row, gap)
        wanted: list[tuple[float, float]] = []
        for item, offset in zip(row, offsets, strict=True):
            near = [(other, self._pull(item, other)) for other in (*self.up[item], *self.down[item])]
            weight = sum(each for _, each in near)
            centre = sum(x[other] * each for other, each in near) / weight if weight else x[item]
            wanted.append((centre - offset, (1.0 + self._degree(item)) ** 3 if item < self.count else LOOSE))
        for item, value, offset in zip(row, isotonic(wanted), offsets, strict=True):
            x[item] = value + offset

    def _pull(self, item: int, other: int) -> float:
        """How much an item is drawn to a neighbour."""
        return 1.0 if (item < self.count) == (other < self.count) else LOOSE


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
