"""What the seeds can tell: means, and paired differences with intervals corrected for their number (Holm)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The paired difference of one method to the reference, over the seeds that both have.

    Attributes:
        pairs: number of pairs.
        mean: of value minus reference; NaN without pairs.
        low: lower end of the corrected interval; minus infinity with fewer than two pairs.
        high: upper end.
        p: of the two-sided paired t test.
        adjusted: p after Holm's correction.
        decided: whether the difference is told from zero at the family's level.
    """

    pairs: int
    mean: float
    low: float
    high: float
    p: float
    adjusted: float
    decided: bool


def paired_differences(
    values: Mapping[str, Mapping[int, float]], reference: str, confidence: float = 0.95
) -> dict[str, Difference]:
    """Compare every method with the reference, seed by seed.

    The p values are those of the paired t test, corrected step by step (Holm, Scand. J. Statist. 6, 1979): of m
    comparisons the one with the k-th smallest p is held against (1 - confidence) / (m - k + 1), and once one is not
    decided none after it is. Its interval has the confidence of its step, so that an undecided one holds zero.

    Args:
        values: method -> seed -> value.
        reference: the method that the others are compared with.
        confidence: of the whole family.
    """
    found = {name: _paired(own, values[reference]) for name, own in values.items() if name != reference}
    order = sorted(found, key=lambda name: _p_value(found[name]))
    result: dict[str, Difference] = {}
    adjusted, open_ = 0.0, True
    for position, name in enumerate(order):
        left = len(order) - position
        p = _p_value(found[name])
        adjusted = max(adjusted, min(1.0, left * p))
        open_ = open_ and p <= (1 - confidence) / left
        low, high = _interval(found[name], 1 - (1 - confidence) / left)
        if not open_:
            low, high = min(low, 0.0), max(high, 0.0)
        mean = math.fsum(found[name]) / len(found[name]) if found[name] else math.nan
        result[name] = Difference(len(found[name]), mean, low, high, p, adjusted, open_)
    return {name: result[name] for name in found}


def _paired(own: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    return [own[seed] - reference[seed] for seed in sorted(own.keys() & reference.keys())]


def _p_value(differences: Sequence[float]) -> float:
    if len(differences) < 2:
        return 1.0
    if max(differences) == min(differences):  # no spread: the t statistic is 0 / 0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _interval(differences: Sequence[float], confidence: float) -> tuple[float, float]:
    if len(differences) < 2:
        return -math.inf, math.inf
    if max(differences) == min(differences):
        return differences[0], differences[0]
    from scipy import stats

    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)
