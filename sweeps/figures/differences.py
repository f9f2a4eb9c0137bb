"""Differences to a reference with their corrected intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sweeps.statistics import Difference


def plot(figure: Any, compared: Mapping[str, Difference]) -> None:
    """Draw one line per cell; filled where the interval excludes zero."""
    axes = figure.add_subplot()
    for row, found in enumerate(compared.values()):
        if not found.pairs:
            continue
        if math.isfinite(found.low) and math.isfinite(found.high):
            axes.plot([found.low, found.high], [row, row], color="0.3", lw=2)
        color = "C3" if found.decided and found.mean < 0 else "C2" if found.decided else "white"
        axes.plot(found.mean, row, "o", ms=9, mfc=color, mec="0.2")
        axes.annotate(
            f"{found.mean:+.2f}", (found.mean, row), (0, 9), textcoords="offset points", ha="center", fontsize=8
        )
    axes.axvline(0, color="0.5", lw=1)
    axes.set_yticks(range(len(compared)), list(compared))
    axes.set_ylim(len(compared) - 0.4, -0.6)
    pairs = sorted({found.pairs for found in compared.values()})
    axes.set_xlabel(
        f"paired difference of test accuracy to the base, points; {' to '.join(map(str, pairs))} pairs of seeds; "
        "lines: 95 % intervals (Holm);\nfilled: told from zero",
        fontsize=9,
    )
    axes.grid(axis="x", alpha=0.3)
