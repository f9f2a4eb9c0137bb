"""Accuracy against relative BOPs: a point with error bars per cell, and the front of those that nothing beats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestration.result import RunResult
from sweeps.pareto import area, front, points_of
from sweeps.statistics import Mean

MARKERS = "osD^vP*X<>ph"
FEW = 10
"""Up to so many cells each has an entry of its own in the legend, and a colour."""
ROOM = 0.25
"""Of the range of the means that is left above and below them; longer bars leave the picture."""


def plot(figure: Any, results: Mapping[str, Mapping[int, RunResult]]) -> None:
    """Draw means with 95 % intervals, the front, and its hypervolume with a bootstrap interval over the seeds."""
    axes = figure.add_subplot()
    cells = {
        cell: {seed: (100 * each.relative_bops, 100 * each.accuracy) for seed, each in own.items()}
        for cell, own in results.items()
    }
    points = points_of({cell: list(own.values()) for cell, own in cells.items()})
    means = {
        cell: tuple(Mean.of([pair[axis] for pair in own.values()]) for axis in (0, 1)) for cell, own in cells.items()
    }
    _draw(axes, means, {cell: next(iter(own.values())).method for cell, own in results.items()})
    best = points[front(points)]
    best = best[best[:, 0].argsort()]
    best = np.vstack([best, [1.05 * points[:, 0].max(), best[-1, 1]]])  # the front goes on to the right
    axes.step(best[:, 0], best[:, 1], where="post", color="0.2", lw=1.2, ls="--", label="front of the means")
    logarithmic = points[:, 0].max() > 5 * points[:, 0].min() > 0
    axes.set_xscale("log" if logarithmic else "linear")
    axes.set_xlabel("relative BOPs, % of the dense float model" + (" (logarithmic)" if logarithmic else ""))
    axes.set_ylabel("test accuracy, %; bars: 95 % intervals of the mean, cut off at the frame")
    lowest, highest = points[:, 1].min(), points[:, 1].max()
    room = max(ROOM * (highest - lowest), 2.0)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, lowest - room, -1.0), min(top, highest + room, 100.5))
    if not logarithmic:
        axes.set_xlim(left=max(axes.get_xlim()[0], 0.0))
    reference = (100.0, 0.0)
    covered = area(cells, reference)
    interval = f" [{covered.low:.1f}, {covered.high:.1f}]" if covered.seeds > 1 else ""
    axes.set_title(
        f"hypervolume to (100 % BOPs, 0 % accuracy): {covered.value:.1f}{interval} of 10,000; {covered.seeds} seeds",
        fontsize=9,
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw(axes: Any, means: Mapping[str, tuple[Mean, ...]], methods: Mapping[str, str]) -> None:
    """Draw each cell; where there are many, those of one method share colour and marker, and settings are numbered."""
    kinds = list(means) if len(means) <= FEW else list(dict.fromkeys(methods.values()))
    drawn: Counter[str] = Counter()
    for cell, (cost, value) in means.items():
        kind = cell if len(means) <= FEW else methods[cell]
        number, several = kinds.index(kind), value.count > 1
        axes.errorbar(
            cost.mean,
            value.mean,
            xerr=cost.half if several else None,
            yerr=value.half if several else None,
            fmt=MARKERS[number % len(MARKERS)],
            color=f"C{number % 10}",
            elinewidth=1.0 if len(means) <= FEW else 0.5,
            capsize=3,
            label="_" if drawn[kind] else f"{kind} (n={value.count})",
        )
        if len(means) > FEW:
            place = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 7, "color": f"C{number % 10}"}
            axes.annotate(cell.removeprefix(kind).strip(), (cost.mean, value.mean), **place)
        drawn[kind] += 1
