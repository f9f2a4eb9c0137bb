"""Paired comparisons against SciPy and against Holm's definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sweeps.statistics import Mean, paired_differences, resolution


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def holm(p: list[float]) -> list[float]:
    """Adjusted p values by the definition: the largest of (m - k + 1) p_(k) so far, at most 1."""
    order, result = np.argsort(p), [0.0] * len(p)
    for position, index in enumerate(order):
        result[index] = max(min(1.0, (len(p) - k) * p[order[k]]) for k in range(position + 1))
    return result


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 8))
def test_against_scipy(seed: int, methods: int, count: int) -> None:
    random = np.random.default_rng(seed)
    values = {f"m{i}": random.normal(0.3 * i, 1, count).tolist() for i in range(methods)}
    reference = random.normal(0, 1, count).tolist()
    found = paired_differences({"geta": by_seed(reference), **{k: by_seed(v) for k, v in values.items()}}, "geta")
    p = [float(stats.ttest_rel(v, reference).pvalue) for v in values.values()]
    assert list(found) == list(values)
    for own, raw, adjusted, difference in zip(values.values(), p, holm(p), found.values(), strict=True):
        assert difference.p == pytest.approx(raw, rel=1e-9)
        assert difference.adjusted == pytest.approx(adjusted, rel=1e-9)
        assert difference.decided == (adjusted <= 0.05)
        assert difference.mean == pytest.approx(np.mean(own) - np.mean(reference))
        assert difference.low <= difference.mean <= difference.high
        assert difference.decided == (difference.low > 0 or difference.high < 0)


def test_one_comparison_has_the_plain_interval() -> None:
    own, reference = [98.0, 98.5, 97.9, 98.8], [97.1, 97.9, 97.0, 98.0]
    (difference,) = paired_differences({"geta": by_seed(reference), "djpq": by_seed(own)}, "geta").values()
    interval = stats.ttest_rel(own, reference).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_only_common_seeds_are_paired() -> None:
    (difference,) = paired_differences(
        {"geta": {0: 1.0, 1: 2.0, 5: 9.0}, "obc": {1: 2.5, 0: 1.5, 7: 0.0}}, "geta"
    ).values()
    assert (difference.pairs, difference.mean) == (2, 0.5)


def test_one_seed_decides_nothing() -> None:
    (difference,) = paired_differences({"geta": {0: 90.0}, "dense": {0: 50.0}}, "geta").values()
    assert (difference.mean, difference.decided, difference.adjusted) == (-40.0, False, 1.0)
    assert (difference.low, difference.high) == (-math.inf, math.inf)


def test_equal_values_differ_in_nothing() -> None:
    found = paired_differences({"geta": {0: 1.0, 1: 2.0}, "same": {0: 1.0, 1: 2.0}, "one": {0: 2.0, 1: 3.0}}, "geta")
    assert (found["same"].mean, found["same"].decided) == (0.0, False)
    assert (found["one"].mean, found["one"].low, found["one"].high, found["one"].decided) == (1.0, 1.0, 1.0, True)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9).filter(lambda values: max(values) - min(values) > 1e-3))
def test_means_against_scipy(values: list[float]) -> None:
    found = Mean.of(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert found.half == pytest.approx((high - low) / 2, rel=1e-9)


def test_few_values_have_no_interval() -> None:
    assert (Mean.of([]).count, Mean.of([3.0]).mean, Mean.of([3.0]).high) == (0, 3.0, math.inf)
    same = Mean.of([2.0, 2.0, 2.0])
    assert (same.sd, same.low, same.high) == (0.0, 2.0, 2.0)


def test_a_winner_is_named_only_where_the_interval_excludes_zero() -> None:
    values = {"geta": [98.0, 98.2, 98.1], "far": [90.0, 90.3, 90.1], "near": [98.1, 98.0, 98.3]}
    found = paired_differences({name: by_seed(own) for name, own in values.items()}, "geta")
    said = resolution(found)
    assert "3 pairs of seeds" in said and "2 comparisons (Holm)" in said
    assert "told from zero: far (-7.97)" in said and "near" not in said
    assert "no winner" in resolution({"near": found["near"]})
    assert "one pair of seeds" in resolution(paired_differences({"geta": {0: 1.0}, "x": {0: 9.0}}, "geta"))
    assert "no pair of seeds" in resolution({})
