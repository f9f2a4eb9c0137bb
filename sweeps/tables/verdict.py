"""Whether what was measured is what was published: by mean, 95 % interval and a margin that stands beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sweeps.statistics import Mean
from sweeps.tables.spec import Column, Published

Verdict = Literal["REPRODUCED", "BETTER", "DIFFERENT", "NOT RUN", ""]
RULE = (
    "REPRODUCED: the mean lies within the margin of the published value, or the 95 % interval of the mean is no wider "
    "than the margin to either side and reaches it; BETTER: the whole interval lies beyond the margin on the better "
    "side; else DIFFERENT; a cell whose seeds are not all there is NOT RUN"
)


def verdict(values: Sequence[float], seeds: int, published: Published, column: Column) -> Verdict:
    """Judge one cell.

    Args:
        values: measured, one per seed.
        seeds: how many there must be; with one seed there is no interval, so two are needed at least.
        published: what it is held against; without a value there is no verdict on a cell that was run.
        column: the margin and the better side.
    """
    if len(values) < max(seeds, 2):
        return "NOT RUN"
    if published.value is None:
        return ""
    found, margin = Mean.of(values), column.width(published.value)
    low, high = published.value - margin, published.value + margin
    reaches = found.low <= high and found.high >= low
    if low <= found.mean <= high or (found.half <= margin and reaches):
        return "REPRODUCED"
    beyond = found.low > high if column.better == "higher" else found.high < low
    return "BETTER" if beyond else "DIFFERENT"
