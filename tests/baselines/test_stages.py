"""Stage lengths as fractions and as steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.geta import Geta
from baselines.stages import Stages
from geta_core.errors import ConfigError
from geta_core.qasso.schedule import Stage


@given(st.integers(100, 5000), st.floats(0.05, 0.3), st.floats(0.05, 0.3), st.floats(0.15, 0.3))
def test_fractions_fill_the_run(total: int, warmup: float, projection: float, joint: float) -> None:
    schedule = Stages(warmup=warmup, projection=projection, joint=joint).schedule(total)
    assert schedule.total == total
    assert abs(schedule.warmup - warmup * total) <= 1
    assert abs(schedule.joint - joint * total) <= 1


def test_steps_and_fractions_may_be_mixed() -> None:
    schedule = Stages(warmup=0, projection=0.25, joint=30).schedule(100)
    assert (schedule.warmup, schedule.projection, schedule.joint, schedule.cooldown) == (0, 25, 30, 45)
    schedule = Stages(warmup=10, projection=20, joint=30, cooldown=40).schedule(100)
    assert (schedule.warmup, schedule.projection, schedule.joint, schedule.cooldown) == (10, 20, 30, 40)


def test_one_step_and_the_whole_run_are_different_things() -> None:
    assert Stages(warmup=1, projection=0, joint=0).schedule(50).warmup == 1
    assert Stages(warmup=1.0, projection=0.0, joint=0.0).schedule(50).warmup == 50


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (Stages(warmup=0.5, projection=0.4, joint=0.3), "must not exceed 1, but sum to 1.2"),
        (Stages(warmup=60, projection=40, joint=30), "must fit the run's 100 steps, but are warmup 60"),
        (Stages(warmup=10, projection=10, joint=10, cooldown=10), "cooldown 10"),
        (Stages(warmup=0.1, projection=0.1, joint=0.1, cooldown=0.1), "sum to"),
        (Stages(projection=3, warmup=0, joint=10), "method.projection_periods must not exceed method.projection"),
    ],
)
def test_lengths_that_do_not_fit(stages: Stages, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stages.schedule(100)
    assert words in str(caught.value)
    assert "schedule." not in str(caught.value), "the user wrote method.<key>"


@pytest.mark.parametrize(
    ("stage", "lengths"),
    [
        ("warmup", (0, 20, 30, 50)),
        ("projection", (10, 0, 30, 60)),
        ("joint", (10, 20, 1, 69)),
        ("cooldown", (50, 20, 30, 0)),
    ],
)
def test_a_stage_is_left_out_and_the_total_stays(stage: Stage, lengths: tuple[int, ...]) -> None:
    schedule = Geta(warmup=0.1, projection=0.2, joint=0.3, without=stage).schedule(100)
    assert (schedule.warmup, schedule.projection, schedule.joint, schedule.cooldown) == lengths
    assert schedule.pruning_periods == (1 if stage == "joint" else 10)


def test_the_criteria_of_the_saliency_are_named_once_each() -> None:
    for wrong in ((), ("cosine", "cosine")):
        with pytest.raises(ConfigError, match=r"method\.saliency must name at least one"):
            Geta(saliency=wrong)  # type: ignore[arg-type]
