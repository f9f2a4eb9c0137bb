"""A tall picture becomes several columns, cut where a single value goes on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

ASPECT = 1.3
"""Height over width that the columns together come near to."""
MOST_COLUMNS = 8
ROW_GAP = 30.0


@dataclass(frozen=True)
class Link:
    """The value of a box, where a column ends or the next begins."""

    number: int
    source: int


@dataclass(frozen=True)
class Part:
    """One column: boxes and links in the order of the computation, and edges between positions in that order."""

    items: tuple[int | Link, ...]
    edges: tuple[tuple[int, int], ...]


def split(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> list[Part]:
    """Cut a graph into columns.

    Args:
        sizes: width and height of each box; box i comes before all that depends on it.
        edges: pairs of boxes (i, j), i < j.
    """
    rows = _row_heights(sizes, edges)
    height, width = sum(rows), max((size[0] for size in sizes), default=1.0) * _breadth(rows, len(sizes))
    count = max(1, min(MOST_COLUMNS, round((height / (ASPECT * max(width, 1.0))) ** 0.5)))
    cuts = _cuts(len(sizes), edges)
    chosen: dict[int, int] = {}
    for number in range(1, count):
        ideal = number * len(sizes) / count
        near = min(cuts, key=lambda cut: abs(cut + 1 - ideal), default=None)
        if near is not None and abs(near + 1 - ideal) <= len(sizes) / count / 3:
            chosen[near] = cuts[near]
    bounds = [0, *(cut + 1 for cut in sorted(chosen)), len(sizes)]
    links = [Link(number, chosen[cut]) for number, cut in enumerate(sorted(chosen))]
    return [
        _part(range(start, end), edges, links[at - 1] if at else None, links[at] if at < len(links) else None)
        for at, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def _row_heights(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> list[float]:
    depth = [0] * len(sizes)
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        depth[b] = max(depth[b], depth[a] + 1)
    rows = [0.0] * (max(depth, default=0) + 1)
    for row, (_, height) in zip(depth, sizes, strict=True):
        rows[row] = max(rows[row], height + ROW_GAP)
    return rows


def _breadth(rows: Sequence[float], boxes: int) -> float:
    """Boxes side by side, and a little for the lines that pass them."""
    return boxes / max(1, len(rows)) + 0.6


def _cuts(count: int, edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Positions behind which only lines of one box go on, with that box."""
    last: dict[int, int] = {}
    for a, b in edges:
        last[a] = max(last.get(a, b), b)
    cuts: dict[int, int] = {}
    open_: set[int] = set()
    for box in range(count):
        open_ = {other for other in open_ if last[other] > box}
        if box in last:
            open_.add(box)
        if len(open_) == 1:
            cuts[box] = next(iter(open_))
    return cuts


def _part(boxes: range, edges: Sequence[tuple[int, int]], first: Link | None, last: Link | None) -> Part:
    items: list[int | Link] = [*([first] if first else []), *boxes, *([last] if last else [])]
    position = {item: at for at, item in enumerate(items) if isinstance(item, int)}
    inside = {(position[a], position[b]) for a, b in edges if a in position and b in position}
    if first is not None:
        inside |= {(0, position[b]) for a, b in edges if a == first.source and a not in position and b in position}
    if last is not None:
        inside.add((position[last.source], len(items) - 1) if last.source in position else (0, len(items) - 1))
    return Part(tuple(items), tuple(sorted(inside)))
