"""Accuracy against relative BOPs: a point with error bars per cell, and the front of those that nothing beats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestration.result import RunResult
from sweeps.pareto import area, front, points_of
from sweeps.statistics import Mean

MARKERS = "osD^vP*X<>ph"


def plot(figure: Any, results: Mapping[str, Mapping[int, RunResult]]) -> None:
    """Draw means with 95 % intervals, the front, and its hypervolume with a bootstrap interval over the seeds."""
    axes = figure.add_subplot()
    cells = {
        cell: {seed: (100 * each.relative_bops, 100 * each.accuracy) for seed, each in own.items()}
        for cell, own in results.items()
    }
    points = points_of({cell: list(own.values()) for cell, own in cells.items()})
    for number, (cell, own) in enumerate(cells.items()):
        cost, value = (Mean.of([pair[axis] for pair in own.values()]) for axis in (0, 1))
        several = value.count > 1
        axes.errorbar(
            cost.mean,
            value.mean,
            xerr=cost.half if several else None,
            yerr=value.half if several else None,
            fmt=MARKERS[number % len(MARKERS)],
            color=f"C{number % 10}",
            capsize=3,
            label=f"{cell} (n={value.count})",
        )
    best = points[front(points)]
    best = best[best[:, 0].argsort()]
    best = np.vstack([best, [1.05 * points[:, 0].max(), best[-1, 1]]])  # the front goes on to the right
    axes.step(best[:, 0], best[:, 1], where="post", color="0.2", lw=1.2, ls="--", label="front of the means")
    logarithmic = points[:, 0].max() > 5 * points[:, 0].min() > 0
    axes.set_xscale("log" if logarithmic else "linear")
    axes.set_xlabel("relative BOPs, % of the dense float model" + (" (logarithmic)" if logarithmic else ""))
    axes.set_ylabel("test accuracy, %; bars: 95 % intervals of the mean")
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, -1.0), min(top, 100.5))
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
