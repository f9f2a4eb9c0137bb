"""A run that is saved and resumed at any step goes on bit for bit."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from geta_core.config import CompressionConfig
from geta_core.errors import ScheduleError
from geta_core.qasso import QASSO
from tests.geta_core.qasso.test_guarantees import INNER
from tests.geta_core.qasso.toy import Toy, conv_net, mlp, schedule, train

CONFIG = CompressionConfig(sparsity=0.6, weight_bits=(4, 8), activation_bits=(3, 6))
PLAN = schedule(warmup=2, projection=3, joint=6, cooldown=3, P=2)


def start(
    inner: str, config: CompressionConfig = CONFIG, build: Any = conv_net, **kwargs: Any
) -> tuple[Toy, QASSO, Any]:
    toy = build(config)
    kind, defaults = INNER[inner]
    optimizer = QASSO(toy, kind, schedule=kwargs.pop("schedule", PLAN), **defaults)
    return toy, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def steps(toy: Toy, optimizer: QASSO, scheduler: Any, numbers: range) -> None:
    for number in numbers:
        train(toy, optimizer, range(number, number + 1))
        scheduler.step()


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("inner", sorted(INNER))
def test_resume_at_every_step_is_bit_identical(inner: str) -> None:
    toy, optimizer, scheduler = start(inner)
    saved = []
    for number in range(PLAN.total + 2):
        saved.append(
            through_a_file([toy.model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), optimizer.stage])
        )
        steps(toy, optimizer, scheduler, range(number, number + 1))
    assert {stage for *_, stage in saved} == {"warmup", "projection", "joint", "cooldown"}
    final = toy.model.state_dict()
    for number, (model, state, schedule_state, stage) in enumerate(saved):
        other, resumed, resumed_scheduler = start(inner)
        other.model.load_state_dict(model)
        resumed.load_state_dict(state)
        resumed_scheduler.load_state_dict(schedule_state)
        assert (resumed.clock, resumed.stage) == (number, stage)
        steps(other, resumed, resumed_scheduler, range(number, PLAN.total + 2))
        for key, value in other.model.state_dict().items():
            assert torch.equal(value, final[key]), (number, stage, key)
        assert torch.equal(resumed.pruned, optimizer.pruned)
        for site, bits in resumed.fixed_bits().items():
            assert torch.equal(bits, optimizer.fixed_bits()[site])


def test_a_state_can_be_loaded_back_into_the_same_optimizer() -> None:
    toy, optimizer, scheduler = start("adamw")
    steps(toy, optimizer, scheduler, range(7))
    model, state = through_a_file([toy.model.state_dict(), optimizer.state_dict()])
    steps(toy, optimizer, scheduler, range(7, 14))
    first = {key: value.clone() for key, value in toy.model.state_dict().items()}
    toy.model.load_state_dict(model)
    optimizer.load_state_dict(state)
    optimizer.param_groups[0]["initial_lr"], scheduler.last_epoch = 1e-2, 7
    steps(toy, optimizer, scheduler, range(7, 14))
    assert all(torch.equal(value, first[key]) for key, value in toy.model.state_dict().items())
    assert optimizer.inner.param_groups is optimizer.param_groups
    assert optimizer.inner.state is optimizer.state


def test_a_saved_state_does_not_change_when_training_goes_on() -> None:
    toy, optimizer, scheduler = start("sgd")
    steps(toy, optimizer, scheduler, range(8))
    own = optimizer.state_dict()["qasso"]
    copy = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in own.items()}
    steps(toy, optimizer, scheduler, range(8, 14))
    for key, value in copy.items():
        assert torch.equal(own[key], value) if isinstance(value, torch.Tensor) else own[key] == value, key


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"schedule": schedule(warmup=3)}, "schedule is"),
        ({"inner": "adam"}, "inner is SGD in the state and Adam here"),
        ({"build": mlp}, "groups is 14 in the state and 18 here"),
        ({"config": CompressionConfig(sparsity=0.5, weight_bits=(4, 8), activation_bits=(3, 6))}, "target_groups is 8"),
        (
            {"config": CompressionConfig(sparsity=0.6, weight_bits=None)},
            "quantizer_entries is 6 in the state and 0 here",
        ),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(other: dict[str, Any], told: str) -> None:
    toy, optimizer, scheduler = start("sgd")
    steps(toy, optimizer, scheduler, range(9))
    _, target, _ = start(**{"inner": "sgd", **other})
    with pytest.raises(ScheduleError, match=told):
        target.load_state_dict(optimizer.state_dict())
    assert target.clock == 0
    assert not target.state


def test_a_plain_optimizer_state_is_refused() -> None:
    toy, optimizer, _ = start("sgd")
    plain = torch.optim.SGD(toy.model.parameters(), lr=0.1)
    with pytest.raises(ScheduleError, match="no entry 'qasso'"):
        optimizer.load_state_dict(plain.state_dict())
