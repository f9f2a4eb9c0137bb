"""What the user is promised: bit ranges after every step, and exactly K groups at zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geta_core.config import CompressionConfig
from geta_core.qasso import QASSO
from tests.geta_core.qasso.toy import Toy, backward, conv_net, mlp, schedule

INNER: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
}
RANGES = st.tuples(st.integers(2, 16), st.integers(2, 16)).map(lambda pair: (min(pair), max(pair)))


def assert_bits(toy: Toy, low: dict[str, float], high: dict[str, float], slack: float, where: object) -> None:
    for site in toy.sites:
        bits = site.quantizer.bits()
        assert float(bits.min()) >= low[site.kind] - slack, (where, site.name)
        assert float(bits.max()) <= high[site.kind] + slack, (where, site.name)
        for value in (site.quantizer.d, site.quantizer.q_m, site.quantizer.t):
            assert value is None or bool((value > 0).all())


def assert_whole(toy: Toy, optimizer: QASSO, slack: float) -> None:
    fixed = optimizer.fixed_bits()
    for site in toy.sites:
        assert float((site.quantizer.bits() - fixed[site.name]).abs().max()) <= slack, site.name


@settings(max_examples=30, deadline=None)
@given(
    weights=RANGES,
    inputs=RANGES,
    per_channel=st.booleans(),
    inner=st.sampled_from(sorted(INNER)),
    lr_quant=st.sampled_from([1e-4, 1e-2, 10.0]),
    projection=st.sampled_from([0, 5]),
    seed=st.integers(0, 100),
)
def test_bits_are_in_range_after_every_step(
    weights: tuple[int, int],
    inputs: tuple[int, int],
    per_channel: bool,
    inner: str,
    lr_quant: float,
    projection: int,
    seed: int,
) -> None:
    """Learning rates of the quantizers up to an absurd one; signed and unsigned grids.

    The promise is for finite gradients: with the absurd rate alone a loss may overflow, which ends the example there.
    """
    # bit_width takes a ratio that is whole up to rounding as whole, so that the ends are exact; but the power q_m^t of
    # an absurd t is rounded differently in a vector and in a 0-dim tensor.
    slack = 0.0 if lr_quant < 1 else 1e-4
    # A bound that is falling may be a fraction, whose ratio q_m^t/d is not whole: four units in the last place of 16.
    falling = max(slack, 8e-6)
    config = CompressionConfig(
        sparsity=0.5,
        weight_bits=weights,
        activation_bits=inputs,
        per_channel=per_channel,
        learn_activation_exponent=True,
    )
    toy = mlp(config, seed=seed)
    kind, kwargs = INNER[inner]
    plan = schedule(warmup=2, projection=projection, joint=6, cooldown=3, P=2)
    optimizer = QASSO(toy, kind, schedule=plan, lr_quant=lr_quant, **kwargs)
    for step in range(plan.total + 2):
        stage = optimizer.stage
        optimizer.zero_grad()
        backward(toy, step)
        if not all(bool(p.grad.isfinite().all()) for p in toy.model.parameters() if p.grad is not None):
            assert lr_quant > 1, "only an absurd learning rate may diverge"
            return
        optimizer.step()
        if stage == "warmup":
            assert_bits(toy, {"weight": 2, "input": 2}, {"weight": 16, "input": 16}, slack, step)
            continue
        bounds = {"weight": weights, "input": inputs}
        high = {name: plan.max_bits(step, 16, bound[1]) for name, bound in bounds.items()}
        settled = step >= plan.warmup + plan.projection - 1
        if settled:
            high = {name: bound[1] for name, bound in bounds.items()}
        assert_bits(
            toy, {name: bound[0] for name, bound in bounds.items()}, high, slack if settled else falling, (step, stage)
        )
        if stage == "cooldown":
            assert_whole(toy, optimizer, slack)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("inner", sorted(INNER))
@pytest.mark.parametrize("build", [mlp, conv_net])
def test_exactly_k_groups_are_zero_and_stay_so(build: Any, inner: str, sparsity: float) -> None:
    toy = build(CompressionConfig(sparsity=sparsity, weight_bits=(4, 8), activation_bits=(4, 8)))
    kind, kwargs = INNER[inner]
    plan = schedule(warmup=2, projection=3, joint=9, cooldown=4, P=3)
    optimizer = QASSO(toy, kind, schedule=plan, **kwargs)
    wanted = int(sparsity * toy.num_prunable)
    assert optimizer.target_groups == wanted
    for step in range(plan.total + 3):
        optimizer.zero_grad()
        backward(toy, step)
        optimizer.step()
        zero = toy.zero_groups()
        assert zero == optimizer.pruned.nonzero().flatten().tolist(), step
        done = max(0, min(3, (step + 1 - 5) // 3))
        assert len(zero) == (wanted if done == 3 else done * (wanted // 3)), step
    assert optimizer.pruned_groups() == wanted


def test_rows_that_are_not_prunable_are_never_touched_by_forgetting() -> None:
    toy = mlp(CompressionConfig(sparsity=0.9, weight_bits=None))
    toy.slots[0].group = toy.slots[0].group.clone()
    toy.slots[0].group[0] = -1
    toy.slots[1].group = toy.slots[0].group
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.0)
    weight = toy.slots[0].parameter
    before = weight.detach().clone()
    for step in range(21):
        optimizer.zero_grad()
        backward(toy, step)
        optimizer.step()
    assert torch.equal(weight[0], before[0])
    assert bool((weight[1:] == 0).all(1).any())


def test_min_kept_and_divisibility_hold_in_the_parameters() -> None:
    config = CompressionConfig(sparsity=0.9, weight_bits=(4, 8), min_kept=2, divisible_by=2)
    toy = mlp(config)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.05)
    assert optimizer.target_groups == 6 + 8, "what min_kept allows of int(0.9 * 18)"
    for step in range(21):
        optimizer.zero_grad()
        backward(toy, step)
        optimizer.step()
    kept = torch.bincount(toy.family[~optimizer.pruned]).tolist()
    assert kept == [2, 2]
    assert len(toy.zero_groups()) == optimizer.pruned_groups() == 14
