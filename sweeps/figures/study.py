"""Every picture of a grid of runs, into one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestration.tracking.base import Line
from orchestration.tracking.jsonl import Journal
from sweeps.figures import differences, layers, stages, trade_off
from sweeps.grid import Found
from sweeps.statistics import Difference

DPI = 110


def draw_study(found: Found, folder: Path, title: str, compared: Mapping[str, Difference] | None = None) -> list[Path]:
    """Draw what there are numbers for.

    Args:
        found: complete runs.
        folder: receives PNG files.
        title: stands above each.
        compared: differences of accuracy to a reference, in points.

    Returns:
        The files; none where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    results = found.results
    courses = {cell: _lines(own) for cell, own in results.items()}
    plots: dict[str, Callable[[Any], None] | None] = {
        "trade_off": lambda figure: trade_off.plot(figure, results),
        "layers": (lambda figure: layers.plot(figure, results)) if layers.drawable(results) else None,
        "stages": (lambda figure: stages.plot(figure, courses)) if any(courses.values()) else None,
        "differences": (lambda figure: differences.plot(figure, compared)) if compared else None,
    }
    drawn = []
    for name, plot in plots.items():
        if plot is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=_size(name, len(results)), layout="constrained")
        figure.suptitle(title)
        plot(figure)
        figure.savefig(folder / f"{name}.png", dpi=DPI)
        drawn.append(folder / f"{name}.png")
    return drawn


def _size(name: str, cells: int) -> tuple[float, float]:
    if name in ("stages", "differences"):
        return 10, 1.8 + 0.45 * cells
    return (12, 8) if name == "layers" else (9, 6)


def _lines(own: Mapping[int, Any]) -> list[Line]:
    """Return the journal of a cell's first seed; a record has none."""
    first = next(iter(own.values()))
    if not first.directory:
        return []
    return Journal(Path(first.directory)).lines()
