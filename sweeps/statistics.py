"""What the seeds can tell: means, and paired differences with intervals corrected for their number (Holm)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """The mean of one value per seed.

    Attributes:
        count: number of seeds.
        mean: of them; NaN without any.
        sd: standard deviation of the sample (divisor count - 1); NaN with fewer than two.
        low: lower end of the interval by Student's t; minus infinity with fewer than two.
        high: upper end.
    """

    count: int
    mean: float
    sd: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @classmethod
    def of(cls, values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
        """Summarize values, one per seed."""
        count = len(values)
        if not count:
            return cls(0, math.nan, math.nan, -math.inf, math.inf)
        mean = statistics.fmean(values)
        if count == 1:
            return cls(1, mean, math.nan, -math.inf, math.inf)
        if max(values) == min(values):  # no spread: the t interval is that one point
            return cls(count, mean, 0.0, mean, mean)
        from scipy import stats

        interval = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
        return cls(count, mean, statistics.stdev(values), float(interval.low), float(interval.high))


def resolution(differences: Mapping[str, Difference]) -> str:
    """Say what the seeds can and cannot tell, and name a winner only where the corrected interval excludes zero."""
    compared = {name: each for name, each in differences.items() if each.pairs >= 2}
    pairs = sorted({each.pairs for each in differences.values()})
    if not compared:
        return f"{'no' if not pairs or pairs[0] == 0 else 'one'} pair of seeds: no difference can be told from chance"
    counts = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    widths = sorted((each.high - each.low) / 2 for each in compared.values())
    told = [name for name, each in compared.items() if each.decided]
    text = (
        f"{counts} pairs of seeds, 95 % intervals corrected for {len(differences)} comparisons (Holm): they resolve "
        f"differences of about {widths[0]:.2f} to {widths[-1]:.2f} and no smaller ones; "
    )
    if not told:
        return text + "none of the differences is told from zero, so there is no winner"
    return text + "told from zero: " + ", ".join(f"{name} ({differences[name].mean:+.2f})" for name in told)


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
