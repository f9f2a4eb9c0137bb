"""Learning rates over a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geta_core.errors import ConfigError
from orchestration.optim import OptimizerSettings, SchedulerSettings, build_scheduler


def rates(settings: SchedulerSettings, total: int) -> list[tuple[float, float]]:
    """Rates that the two groups have in each step."""
    weight, step_size = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [step_size], "lr": 1e-3}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = build_scheduler(settings, optimizer, total)
    found = []
    for _ in range(total):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_with_a_rise() -> None:
    found = [weight for weight, _ in rates(SchedulerSettings(warmup=4, final=0.1), 20)]
    assert found[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    expected = [0.1 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 16))) for step in range(16)]
    assert found[4:] == pytest.approx(expected)


def test_steps_fall_at_the_milestones() -> None:
    found = [weight for weight, _ in rates(SchedulerSettings(name="step", milestones=(0.5, 0.75), gamma=0.1), 8)]
    assert found == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_constant() -> None:
    assert {weight for weight, _ in rates(SchedulerSettings(name="constant"), 5)} == {0.1}


@given(st.sampled_from(["cosine", "step", "constant"]), st.integers(1, 30), st.floats(0, 1))
def test_both_groups_follow_and_none_exceeds_its_own_rate(name: str, total: int, warmup: float) -> None:
    for weight, step_size in rates(SchedulerSettings(name=name, warmup=warmup), total):  # type: ignore[arg-type]
        assert 0 <= weight <= 0.1 and step_size == pytest.approx(weight / 100)


def test_a_rise_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.warmup must not exceed the run's 10 steps, but got 11"):
        rates(SchedulerSettings(warmup=11), 10)


def test_keywords_are_those_the_class_takes() -> None:
    for name in ("sgd", "adam", "adamw"):
        settings = OptimizerSettings(name=name, lr=0.5, weight_decay=0.25)
        optimizer = settings.optimizer_class()([torch.nn.Parameter(torch.zeros(1))], **settings.keywords())
        assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["weight_decay"] == 0.25
        assert type(optimizer).__name__.lower() == name
