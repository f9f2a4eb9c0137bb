"""Stages, the falling bound and the pruning periods, counted step by step."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geta_core.errors import ConfigError
from geta_core.qasso import Schedule


def test_stages_follow_each_other_and_the_cooldown_never_ends() -> None:
    schedule = Schedule(warmup=2, projection=4, joint=6, cooldown=3, projection_periods=2, pruning_periods=3)
    assert schedule.total == 15
    stages = [schedule.stage_at(step) for step in range(17)]
    lengths = [(stage, len(list(steps))) for stage, steps in groupby(stage for stage, _ in stages)]
    assert lengths == [("warmup", 2), ("projection", 4), ("joint", 6), ("cooldown", 5)]
    assert [at for _, at in stages] == [*range(2), *range(4), *range(6), *range(5)]


@pytest.mark.parametrize(
    ("initial", "high", "B", "bounds"),
    [
        (16, 8, 5, [16, 14, 12, 10, 8]),  # VGG7, Table 7
        (16, 4, 7, [16, 14, 12, 10, 8, 6, 4]),  # ResNet20
        (16, 10, 4, [16, 14, 12, 10]),  # BERT
        (16, 9, 3, [16, 12.5, 9]),
        (16, 8, 1, [8]),
    ],
)
def test_the_bound_falls_by_the_papers_settings(initial: int, high: int, B: int, bounds: list[float]) -> None:
    schedule = Schedule(warmup=1, projection=70 * B, joint=0, cooldown=1, projection_periods=B)
    found = [schedule.max_bits(1 + step, initial, high) for step in range(70 * B)]
    assert [bound for bound, _ in groupby(found)] == bounds
    assert {len(list(steps)) for _, steps in groupby(found)} == {70}
    assert schedule.max_bits(0, initial, high) == initial
    assert schedule.max_bits(1 + 70 * B, initial, high) == high


@given(B=st.integers(1, 12), extra=st.integers(0, 60), high=st.integers(2, 16))
def test_every_period_count_makes_b_minus_one_reductions(B: int, extra: int, high: int) -> None:
    schedule = Schedule(warmup=0, projection=B + extra, joint=0, cooldown=0, projection_periods=B)
    found = [schedule.max_bits(step, 17, high) for step in range(B + extra)]
    runs = [len(list(steps)) for _, steps in groupby(found)]
    assert len(runs) == B
    assert max(runs) - min(runs) <= 1
    assert found[-1] == high
    assert found == sorted(found, reverse=True)


@given(P=st.integers(1, 12), extra=st.integers(0, 60))
def test_pruning_periods_cover_the_joint_stage(P: int, extra: int) -> None:
    schedule = Schedule(warmup=0, projection=0, joint=P + extra, cooldown=0, pruning_periods=P)
    steps = [schedule.period_at(step) for step in range(P + extra)]
    runs = [list(run) for _, run in groupby(steps, key=lambda step: step.period)]
    assert [run[0].period for run in runs] == list(range(P))
    for run in runs:
        assert [step.step for step in run] == list(range(run[0].length))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_no_projection_means_the_final_bound_from_the_start_of_the_joint_stage() -> None:
    schedule = Schedule(warmup=3, projection=0, joint=10, cooldown=0)
    assert [schedule.max_bits(step, 16, 6) for step in range(5)] == [16, 16, 16, 6, 6]


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(warmup=-1, projection=1.5, joint=True, cooldown=1, pruning_periods=0)  # type: ignore[arg-type]
    assert [fault.split()[0] for fault in caught.value.faults] == [
        "schedule.warmup",
        "schedule.projection",
        "schedule.joint",
        "schedule.pruning_periods",
    ]
    with pytest.raises(ConfigError) as caught:
        Schedule(warmup=0, projection=3, joint=5, cooldown=0, projection_periods=4, pruning_periods=6)
    assert len(caught.value.faults) == 2
    assert "projection_periods to 3" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="at least one step"):
        Schedule(warmup=0, projection=0, joint=0, cooldown=0)


@given(st.integers(20, 10_000), st.tuples(*[st.integers(0, 20)] * 4).filter(any))
def test_fractions_add_up_exactly(total: int, parts: tuple[int, int, int, int]) -> None:
    shares = [part / sum(parts) for part in parts]
    names = ("warmup", "projection", "joint", "cooldown")
    try:
        schedule = Schedule.fractions(
            total, **dict(zip(names, shares, strict=True)), projection_periods=1, pruning_periods=1
        )
    except ConfigError as error:
        assert "gives no step" in str(error)
        assert min(share for share in shares if share) * total < 1
        return
    assert schedule.total == total
    for name, share in zip(names, shares, strict=True):
        assert abs(getattr(schedule, name) - share * total) <= 1


def test_fractions_report_every_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule.fractions(0, warmup=-0.1, projection=2, joint=0.5, cooldown=0.5)
    assert len(caught.value.faults) == 3
    with pytest.raises(ConfigError, match=r"sum to 1, but .* sum to 0\.9"):
        Schedule.fractions(100, warmup=0.1, projection=0.2, joint=0.3, cooldown=0.3)
    with pytest.raises(ConfigError, match=r"warmup=0\.01 of 20 steps gives no step"):
        Schedule.fractions(20, warmup=0.01, projection=0.29, joint=0.4, cooldown=0.3, pruning_periods=2)
