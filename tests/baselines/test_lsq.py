"""Learned step sizes against LSQ's formulas, written out without the engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.lsq import LearnedSteps, Watcher
from baselines.helpers.sequence import SequenceOptimizer
from baselines.prune_then_qat import PruneThenQat


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def lsq(v: Tensor, s: Tensor, low: float, top: float) -> Tensor:
    """The authors' own formulation (arXiv:1902.08153, Eq. 1 and 2), differentiated by torch."""
    rounded: Tensor = Round.apply((v / s).clamp(low, top))  # type: ignore[no-untyped-call]
    return rounded * s


def prepared_layer(bits: int, inputs: int | None, per_channel: bool = False) -> tuple[geta.Prepared, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    config = geta.CompressionConfig(
        sparsity=0.0,
        weight_bits=(bits, bits),
        activation_bits=None if inputs is None else (inputs, inputs),
        learn_exponent=False,
        per_channel=per_channel,
    )
    return geta.prepare(nn.Sequential(nn.Linear(6, 5)), x, config, calibration=[x]), x


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_are_lsqs(bits: int, signed: bool) -> None:
    prepared, x = prepared_layer(8, bits)
    x = x if signed else x.abs()
    site = next(site for site in prepared.sites if site.kind == "input")
    quantizer, top = site.quantizer, 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    quantizer.signed = signed
    steps = LearnedSteps([site], 8, bits, 0)
    with torch.no_grad():
        quantizer.d.fill_(0.9 / top)  # some values lie beyond the range
        quantizer.q_m.copy_(quantizer.d * top)
    mine = x.clone().requires_grad_()
    weights = torch.randn_like(x)
    (quantizer(mine) * weights).sum().backward()
    steps.before_step(0)
    theirs, s = x.clone().double().requires_grad_(), quantizer.d.detach().double().requires_grad_()
    out = lsq(theirs, s, -top if signed else 0, top)
    (out * weights).sum().backward()
    assert quantizer.d.grad is not None and s.grad is not None
    scale = 1 / math.sqrt(6 * top)  # 6 features per example
    assert float(quantizer.d.grad) == pytest.approx(float(s.grad) * scale, rel=1e-4)
    assert mine.grad is not None and theirs.grad is not None
    assert torch.allclose(mine.grad.double(), theirs.grad, atol=1e-6)
    assert quantizer.q_m.grad is None, "nothing else learns the range"


@pytest.mark.parametrize("per_channel", [False, True])
def test_it_starts_at_the_papers_step(per_channel: bool) -> None:
    prepared, _ = prepared_layer(4, None, per_channel)
    (site,) = prepared.sites
    LearnedSteps(prepared.sites, 4, None, 0)
    assert site.parameter is not None
    magnitude = site.parameter.detach().abs()
    mean = magnitude.mean(1, keepdim=True) if per_channel else magnitude.mean()
    assert torch.allclose(site.quantizer.d, 2 * mean / math.sqrt(7), rtol=1e-6)
    assert torch.equal(site.quantizer.bits(), torch.full_like(site.quantizer.d, 4))


def test_until_it_starts_values_pass_unchanged_and_count_as_float() -> None:
    prepared, x = prepared_layer(4, 4)
    layer = prepared.model[0]  # type: ignore[index]
    steps = LearnedSteps(prepared.sites, 4, 4, 3)
    original = layer.parametrizations.weight.original
    assert torch.equal(prepared.model(x), nn.functional.linear(x, original, layer.bias))
    assert prepared.status()["weight_bits"] == prepared.status()["activation_bits"] == 32
    for step in range(3):
        prepared.model.train()(x).sum().backward()
        steps.before_step(step)
        steps.after_step(step)
    assert not torch.equal(prepared.model(x), nn.functional.linear(x, original, layer.bias))
    assert prepared.status()["weight_bits"] == prepared.status()["activation_bits"] == 4


def test_the_range_of_an_input_is_what_training_showed_and_not_what_evaluation_did() -> None:
    prepared, x = prepared_layer(8, 8)
    site = next(site for site in prepared.sites if site.kind == "input")
    watcher = Watcher(site.quantizer)
    watcher(x.abs())
    assert float(watcher.mean) == pytest.approx(float(x.abs().mean())) and float(watcher.low) == 0
    site.quantizer.eval()
    watcher(-100 * x.abs())
    assert float(watcher.low) == 0
    site.quantizer.train()
    watcher(2 * x)
    assert float(watcher.mean) == pytest.approx(1.1 * float(x.abs().mean()), rel=1e-5)
    assert float(watcher.low) == pytest.approx(2 * float(x.min()))


def test_the_step_size_stays_positive_and_the_bits_stay_what_they_are() -> None:
    prepared, x = prepared_layer(3, 5)
    steps = LearnedSteps(prepared.sites, 3, 5, 0)
    optimizer = SequenceOptimizer(
        prepared, torch.optim.SGD, stages=[("quantize", 20)], steps=steps, lr=100.0, momentum=0.9, weight_decay=0.1
    )
    assert optimizer.param_groups[1]["weight_decay"] == 0 and optimizer.param_groups[1]["lr"] == 100.0
    for _ in range(20):
        prepared.model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for site in prepared.sites:
            assert bool((site.quantizer.d > 0).all())
            assert set(site.quantizer.bits().flatten().tolist()) == {3.0 if site.kind == "weight" else 5.0}


def test_training_the_step_lowers_the_error_of_the_layer() -> None:
    torch.manual_seed(1)
    prepared, x = prepared_layer(2, None)
    target = prepared.model(x).detach() * 1.5
    steps = LearnedSteps(prepared.sites, 2, None, 0)
    optimizer = SequenceOptimizer(prepared, torch.optim.SGD, stages=[("quantize", 200)], steps=steps, lr=0.05)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.requires_grad_(False)
    losses = []
    for _ in range(200):
        loss = (prepared.model(x) - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_too_short_for_the_stage_is_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    method = PruneThenQat(warmup=10, joint=20, recovery=10)
    prepared = method.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x, [x])
    with pytest.raises(geta.ConfigError, match=r"method\.quantize must have at least one step"):
        method.optimizer(prepared, 40, torch.optim.SGD, lr=0.1)
    with pytest.raises(geta.ConfigError, match="must fit the run's 30 steps, but are warmup 10, joint 20, recovery 10"):
        method.optimizer(prepared, 30, torch.optim.SGD, lr=0.1)
