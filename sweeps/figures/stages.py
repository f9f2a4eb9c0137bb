"""When each cell was in which stage, and how it stood at the stage's end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.pictures import SHADES
from orchestration.tracking.base import Line

OTHERS = ("#d3ecef", "#f6d9d5", "#e9e3c4", "#e3dff2", "#d9e7d0")
"""Colours of stages that are not GETA's, in the order in which they appear."""
NARROW = 0.045
"""Share of the longest run below which a bar has no room for a number."""


def plot(figure: Any, courses: Mapping[str, Sequence[Line]]) -> None:
    """Draw one bar per cell (its first seed), cut into stages; validation accuracy at the end of each."""
    axes = figure.add_subplot()
    shown: dict[str, Any] = {}
    longest = max((line.step for lines in courses.values() for line in lines), default=1)
    stages = dict.fromkeys(line.stage for lines in courses.values() for line in lines if line.kind == "stage")
    others = [stage for stage in stages if stage not in SHADES]
    colors = {**SHADES, **{stage: OTHERS[number % len(OTHERS)] for number, stage in enumerate(others)}}
    for row, lines in enumerate(courses.values()):
        start = 0
        for line in (each for each in lines if each.kind == "stage"):
            bars = axes.barh(row, line.step - start, left=start, color=colors[line.stage], edgecolor="0.5", height=0.7)
            shown.setdefault(line.stage, bars)
            accuracy = line.metrics.get("stage/val/accuracy")
            if accuracy is not None and line.step - start > NARROW * longest:
                axes.text((start + line.step) / 2, row, f"{100 * accuracy:.1f} %", ha="center", va="center", fontsize=8)
            start = line.step
    axes.set_yticks(range(len(courses)), list(courses))
    axes.invert_yaxis()
    axes.set_xlabel("optimizer steps; in the bars: validation accuracy at the end of the stage, first seed")
    order = [stage for stage in SHADES if stage in shown] + [stage for stage in shown if stage not in SHADES]
    axes.legend(
        [shown[stage] for stage in order], order, ncols=len(order), fontsize=8, loc="lower left", bbox_to_anchor=(0, 1)
    )
