"""Bayesian Bits: the decomposition is uniform quantization, and the method keeps what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.bayesian_bits import WIDTHS, BayesianBits, BitsOptimizer, ResidualQuantizer, gated_sum, residuals
from baselines.helpers import gates
from geta_core.errors import ConfigError
from geta_core.quantize import Quantizer
from tests.baselines.nets import STEPS, accuracy, batches, resumed, start, train

QUICK = {"lr_gates": 0.15, "lr_quant": 0.01, "price": 0.03}


def uniform(x: np.ndarray, beta: float, bits: int, signed: bool) -> np.ndarray:
    """Uniform quantization to 2^b - 1 levels around zero, or 2^b from zero on, written without the method."""
    step = (2 if signed else 1) * beta / (2**bits - 1)
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return step * np.clip(np.round(x / step), -top if signed else 0, top)


@pytest.mark.parametrize("signed", [True, False])
def test_the_sum_of_residuals_is_uniform_quantization(signed: bool) -> None:
    """Exactly: the levels agree everywhere but where a value lies half-way between two levels, to 1e-9 of a step."""
    beta = 1.7
    x = torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.2
    parts = residuals(x, torch.tensor(beta, dtype=torch.float64), signed)
    for number, bits in enumerate(WIDTHS, 1):
        step = (2 if signed else 1) * beta / (2**bits - 1)
        total = torch.stack(parts[:number]).sum(0).numpy()
        place = x.numpy() / step
        # The range is clipped by 1e-6 of beta, which moves half-way values at its very end.
        decided = np.abs(place - np.floor(place) - 0.5) > 1e-9
        decided &= np.abs(np.abs(x.numpy()) - beta) > 1e-5
        assert decided.mean() > 0.99
        found, expected = np.round(total / step), np.round(uniform(x.numpy(), beta, bits, signed) / step)
        assert np.abs(total / step - found).max() < 1e-6, "on the grid"
        assert (found == expected)[decided].all(), bits


@pytest.mark.parametrize("signed", [True, False])
def test_closed_gates_leave_the_engines_quantizer(signed: bool) -> None:
    """What the quantizer is set to when gates are fixed computes what the open gates computed."""
    beta = torch.tensor(0.9)
    x = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 2.4 - (1.2 if signed else 0)
    parts = residuals(x, beta, signed)
    for number, bits in enumerate(WIDTHS[:3]):
        z = torch.tensor([1.0] * number + [0.0] * (len(WIDTHS) - 1 - number))
        levels = 2.0**bits
        quantizer = Quantizer(beta * ((levels - 2) / (levels - 1) if signed else 1), bits, signed=signed)
        difference = (gated_sum(parts, z) - quantizer(x)).abs()
        # Rounding in float32 decides a few half-way values the other way: then they differ by one step.
        assert (difference > 1e-5).float().mean() < 2e-3, bits
        assert difference.max() <= float(quantizer.d.detach()) * 1.01


def test_gradients_pass_straight_and_reach_the_range() -> None:
    x = torch.tensor([-2.0, -0.3, 0.2, 0.6, 3.0], requires_grad=True)
    beta = torch.tensor(1.0, requires_grad=True)
    z = torch.ones(len(WIDTHS) - 1, requires_grad=True)
    gated_sum(residuals(x, beta, True), z).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, torch.tensor([0.0, 1, 1, 1, 0]), atol=1e-6)
    # At 16 bits the quantized value follows beta only where it is cut: -1 and +1.
    assert beta.grad is not None and abs(float(beta.grad)) < 1e-3
    expected = [part.detach() for part in residuals(x.detach(), torch.tensor(1.0), True)]
    assert z.grad is not None
    assert float(z.grad[2]) == pytest.approx(float(expected[3].sum()), abs=1e-6)
    assert float(z.grad[0]) == pytest.approx(float(torch.stack(expected[1:]).sum()), abs=1e-6)


def test_it_learns_and_ends_at_the_asked_bops() -> None:
    method = BayesianBits(match_bops=0.012, **QUICK)
    prepared, optimizer = start(method)
    train(prepared, optimizer, batches(STEPS))
    compressed = method.finish(prepared, [])
    report = compressed.report
    assert abs(report.relative_bops / 0.012 - 1) < 0.1
    assert accuracy(compressed.model) > 0.6
    widths = {int(bits) for weight in compressed.weights.values() for bits in weight.bits.flatten()}
    assert widths | {int(row.input_bits) for row in report.layers} <= set(WIDTHS)
    assert not any(isinstance(module, ResidualQuantizer) for module in prepared.model.modules())


def test_without_a_target_the_price_decides() -> None:
    costs = []
    for price in (1e-4, 1.0):
        method = BayesianBits(price=price, lr_gates=0.3, logit=2.0)
        prepared, optimizer = start(method)
        train(prepared, optimizer, batches(STEPS))
        costs.append(method.finish(prepared, []).report.relative_bops)
    assert costs[1] < 0.25 * costs[0]


def test_the_penalty_is_the_formula() -> None:
    method = BayesianBits(price=0.5)
    prepared, optimizer = start(method)
    assert isinstance(optimizer, BitsOptimizer)
    held = optimizer.gates
    with torch.no_grad():
        held.group_logit.uniform_(-2, 2)
        held.bit_logit.uniform_(-2, 2)
    chance = gates.probability_open(held.bit_logit.detach())
    charge = [2 + c[0] * 4 + c[0] * c[1] * 8 + c[0] * c[1] * c[2] * 16 for c in chance]
    of = {site.name: price for site, price in zip(prepared.sites, charge, strict=True)}
    macs = optimizer.cost.layer_macs(gates.probability_open(held.group_logit.detach()))
    rows = [row for row in prepared.dense if row.counted]
    largest = max(row.macs for row in rows)
    expected = sum(
        m / largest * (of[row.name] + of[row.name.replace("weight", "input")])
        for m, row in zip(macs, rows, strict=True)
    )
    assert float(optimizer.penalty().detach()) == pytest.approx(0.5 * float(expected), rel=1e-5)


@pytest.mark.parametrize("at", [7, STEPS - 5])
def test_a_resumed_run_is_the_same_bit_for_bit(at: int) -> None:
    whole, again = resumed(BayesianBits(match_bops=0.02, **QUICK), at)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_widths_must_be_doublings() -> None:
    with pytest.raises(ConfigError, match="must be two of"):
        BayesianBits(weight_bits=(3, 8))
