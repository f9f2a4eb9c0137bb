"""Fronts and hypervolumes against brute force, the bootstrap against its own definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.pareto import area, front, hypervolume, points_of

POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_no_point_beats(pairs: list[tuple[int, int]]) -> None:
    found = front(np.array(pairs, dtype=float))
    for index, (cost, value) in enumerate(pairs):
        beaten = any(c <= cost and v >= value and (c < cost or v > value) for c, v in pairs)
        assert found[index] == (not beaten)


@given(POINTS, st.integers(1, 12), st.integers(0, 11))
def test_the_hypervolume_counts_the_unit_squares_that_are_dominated(
    pairs: list[tuple[int, int]], cost: int, value: int
) -> None:
    squares = sum(any(c <= x and v >= y + 1 for c, v in pairs) for x in range(cost) for y in range(value, 12))
    assert hypervolume(np.array(pairs, dtype=float), (cost, value)) == squares


def test_the_bootstrap_is_the_percentile_interval_over_seeds() -> None:
    random = np.random.default_rng(1)
    cells = {
        name: {seed: (cost + random.normal(0, 0.2), value + random.normal(0, 1)) for seed in range(6)}
        for name, cost, value in (("a", 1.0, 90.0), ("b", 4.0, 95.0))
    }
    found = area(cells, (10.0, 50.0))
    values = np.array([[own[seed] for seed in range(6)] for own in cells.values()])
    drawn = [
        hypervolume(values[:, random.integers(0, 6, 6)].mean(axis=1), (10.0, 50.0)) for _ in range(4000)
    ]  # fmt: skip
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.seeds == 6
    assert found.value == hypervolume(values.mean(axis=1), (10.0, 50.0))
    # Two independent bootstraps differ by their draws: a tenth of the width is ten times their standard error.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_seeds_that_a_cell_lacks_do_not_count() -> None:
    cells = {"a": {0: (1.0, 90.0), 1: (3.0, 90.0)}, "b": {0: (2.0, 95.0)}}
    found = area(cells, (10.0, 50.0))
    assert (found.seeds, found.low, found.high) == (1, found.value, found.value)
    assert found.value == 1 * 40 + 8 * 45
    assert area({}, (1.0, 0.0)).seeds == 0
    assert points_of({}).shape == (0, 2)
