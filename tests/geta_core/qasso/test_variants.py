"""QASSO with a rule replaced: what is promised holds, and the replaced rule is the one that acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from geta_core.config import CompressionConfig
from geta_core.errors import ConfigError, ScheduleError
from geta_core.qasso import QASSO, VariedQASSO
from tests.geta_core.qasso.test_guarantees import INNER, assert_bits, assert_whole
from tests.geta_core.qasso.toy import Toy, conv_net, mlp, original, schedule, train

CONFIG = CompressionConfig(sparsity=0.5, weight_bits=(3, 6), activation_bits=(4, 8))
PLAN = schedule(warmup=2, projection=6, joint=9, cooldown=4, P=3)
START = PLAN.warmup + PLAN.projection


def start(
    inner: str = "sgd", build: Any = conv_net, config: CompressionConfig = CONFIG, **rules: Any
) -> tuple[Toy, VariedQASSO]:
    toy = build(config)
    kind, defaults = INNER[inner]
    return toy, VariedQASSO(toy, kind, schedule=PLAN, lr_quant=1e-3, **rules, **defaults)


def parameters(toy: Toy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in toy.model.state_dict().items()}


@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_the_published_rules_are_qasso_itself(inner: str) -> None:
    toy, optimizer = start(inner)
    plain = conv_net(CONFIG)
    kind, defaults = INNER[inner]
    reference = QASSO(plain, kind, schedule=PLAN, lr_quant=1e-3, **defaults)
    train(toy, optimizer, range(PLAN.total))
    train(plain, reference, range(PLAN.total))
    for name, value in parameters(plain).items():
        assert torch.equal(value, toy.model.state_dict()[name]), name


@pytest.mark.parametrize("forgetting", ["rule", "uniform"])
@pytest.mark.parametrize("step_rule", ["rule", "gradient", "fixed"])
def test_groups_and_bits_are_as_promised(forgetting: Any, step_rule: Any) -> None:
    toy, optimizer = start(forgetting=forgetting, step_rule=step_rule)
    low, high = {"weight": 3.0, "input": 4.0}, {"weight": 6.0, "input": 8.0}
    for number in range(PLAN.total):
        train(toy, optimizer, range(number, number + 1))
        if number >= START:
            assert_bits(toy, low, high, 1e-4, number)
    assert len(toy.zero_groups()) == optimizer.target_groups == 7
    assert_whole(toy, optimizer, 1e-4)


def test_uniform_forgetting_subtracts_an_equal_share_of_the_quantized_weight() -> None:
    """One period of T steps without gradient: after step t a redundant row is w - sum x^Q / (T - t), by hand."""
    toy = mlp(CompressionConfig(sparsity=0.5, weight_bits=None, activation_bits=None), torch.float64)
    plan = schedule(warmup=0, projection=0, joint=4, cooldown=1, P=1)
    optimizer = VariedQASSO(toy, torch.optim.SGD, schedule=plan, forgetting="uniform", lr=0.0)
    weights = [original(toy.model.get_submodule(name)) for name in ("0", "2")]
    before = [weight.detach().clone() for weight in weights]
    train(toy, optimizer, range(3))
    # With x^Q = x (no quantizer) 3/4 2/3 1/2 = 1/4 of a redundant row is left, and all of the others.
    shares = torch.cat([(now.detach() / was)[:, 0] for now, was in zip(weights, before, strict=True)])
    assert sorted(shares.tolist()) == pytest.approx([0.25] * 9 + [1.0] * 9, rel=1e-12)


def test_fixed_steps_keep_the_bits_that_the_joint_stage_begins_with() -> None:
    toy, optimizer = start(step_rule="fixed")
    train(toy, optimizer, range(START))
    at_start = optimizer.fixed_bits()
    for number in range(START, PLAN.total):
        train(toy, optimizer, range(number, number + 1))
        for site in toy.sites:
            assert float((site.quantizer.bits() - at_start[site.name]).abs().max()) < 1e-4, (number, site.name)


def test_steps_by_gradient_are_those_of_the_projection_alone() -> None:
    """With lr_quant = 0 nothing but the rule moves d: by gradient it stays, by the rule it does not."""
    moved = {}
    for step_rule in ("gradient", "rule"):
        toy = mlp(CONFIG)
        optimizer = VariedQASSO(
            toy, torch.optim.SGD, schedule=PLAN, lr_quant=0.0, lr=0.05, step_rule=step_rule  # type: ignore[arg-type]
        )  # fmt: skip
        train(toy, optimizer, range(START))
        before = [site.quantizer.d.detach().clone() for site in toy.sites]
        train(toy, optimizer, range(START, START + 5))
        moved[step_rule] = any(
            not torch.equal(was, site.quantizer.d) for was, site in zip(before, toy.sites, strict=True)
        )
    assert moved == {"gradient": False, "rule": True}


def test_a_state_of_other_rules_is_refused() -> None:
    _, optimizer = start(forgetting="uniform")
    _, other = start(step_rule="fixed")
    with pytest.raises(ScheduleError, match=r"forgetting is uniform in the state and rule here.*step_rule"):
        other.load_state_dict(optimizer.state_dict())


def test_unknown_rules_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        start(forgetting="never", step_rule="learned")
    assert len(caught.value.faults) == 2
