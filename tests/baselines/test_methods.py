"""Each method on a small net: its promise, counted from the finished tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.base import Method
from baselines.dense import Dense
from baselines.geta import Geta
from baselines.prune_then_ptq import PruneThenPtq
from baselines.qat_only import QatOnly
from geta_core.errors import ConfigError

STEPS = 40


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 36, 10),
    )  # fmt: skip


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(10, (16,), generator=generator) for _ in range(count)]
    noise = [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(count)]
    # The class is a bright row, so that there is something to learn.
    for images, classes in zip(noise, labels, strict=True):
        for image, label in zip(images, classes.tolist(), strict=True):
            image[0, label % 8, label % 5 :] += 4
    return list(zip(noise, labels, strict=True))


def trained(method: Method, **keywords: Any) -> tuple[geta.Prepared, geta.Compressed, list[float]]:
    torch.manual_seed(0)
    data = batches(STEPS)
    calibration = [images for images, _ in data[:4]]
    prepared = method.prepare(net().train(), calibration[0], calibration)
    optimizer = method.optimizer(prepared, STEPS, torch.optim.SGD, **{"lr": 0.02, "momentum": 0.9, **keywords})
    losses = []
    for images, labels in data:
        loss = nn.functional.cross_entropy(prepared.model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return prepared, method.finish(prepared, calibration), losses


def levels(tensor: Tensor) -> int:
    return len(tensor.unique())


def test_dense_is_plain_training() -> None:
    prepared, compressed, losses = trained(Dense())
    torch.manual_seed(0)
    model = net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for images, labels in batches(STEPS):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] == loss.item()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(prepared.model.named_parameters())[name])
    assert compressed.report.relative_bops == 1 and compressed.report.group_sparsity == 0


def test_geta_keeps_its_promise() -> None:
    method = Geta(
        sparsity=0.5, weight_bits=(4, 6), activation_bits=(4, 8), projection_periods=2, pruning_periods=2, lr_quant=1e-3
    )
    prepared, compressed, losses = trained(method)
    assert losses[-1] < losses[0]
    assert compressed.report.removed == int(0.5 * prepared.num_prunable)
    assert 4 <= compressed.report.weight_bits <= 6 and 4 <= compressed.report.activation_bits <= 8
    for weight in compressed.weights.values():
        assert 4 <= int(weight.bits.min()) <= int(weight.bits.max()) <= 6


@pytest.mark.parametrize("bits", [2, 4])
def test_qat_only_trains_at_its_bits(bits: int) -> None:
    _, compressed, losses = trained(QatOnly(weight_bits=bits, activation_bits=8, projection_periods=2))
    assert losses[-1] < losses[0]
    assert compressed.report.removed == 0
    assert compressed.report.weight_bits == bits and compressed.report.activation_bits == 8
    for name, parameter in compressed.model.named_parameters():
        if parameter.dim() > 1:
            assert levels(parameter) <= 2**bits - 1, name
    assert math.isclose(compressed.report.relative_bops, bits * 8 / 1024, rel_tol=1e-6)


def test_prune_then_ptq_prunes_in_float_and_quantizes_afterwards() -> None:
    method = PruneThenPtq(sparsity=0.5, weight_bits=4, activation_bits=8, pruning_periods=2, per_channel=False)
    prepared, compressed, losses = trained(method)
    assert losses[-1] < losses[0]
    assert compressed.report.removed == int(0.5 * prepared.num_prunable)
    assert compressed.report.weight_bits == 4 and compressed.report.activation_bits == 8
    for name, parameter in compressed.model.named_parameters():
        if parameter.dim() > 1:
            assert levels(parameter) <= 2**4 - 1, name


def test_prune_then_ptq_at_8_bits_hardly_changes_the_pruned_model() -> None:
    """At 8 bits, post-training quantization is known to cost almost nothing (arXiv:2106.08295, section 3)."""
    images = torch.cat([images for images, _ in batches(8)])
    outputs = []
    for bits in (8, 3):
        _, compressed, _ = trained(PruneThenPtq(sparsity=0.3, weight_bits=bits, pruning_periods=2))
        wanted = before_quantization(images)
        outputs.append(((compressed.model(images) - wanted).norm() / wanted.norm()).item())
    assert outputs[0] < 0.03 < outputs[1], outputs


def before_quantization(images: Tensor) -> Tensor:
    """The pruned model before quantization: training is repeated, since ``finish`` attached quantizers to the other."""
    torch.manual_seed(0)
    method = PruneThenPtq(sparsity=0.3, pruning_periods=2)
    data = batches(STEPS)
    again = method.prepare(net().train(), data[0][0], [images for images, _ in data[:4]])
    optimizer = method.optimizer(again, STEPS, torch.optim.SGD, lr=0.02, momentum=0.9)
    for batch, labels in data:
        nn.functional.cross_entropy(again.model(batch), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    result: Tensor = again.model.eval()(images)
    return result


def test_adam_and_per_channel_ranges() -> None:
    torch.manual_seed(0)
    data = batches(STEPS)
    method = Geta(sparsity=0.25, weight_bits=(4, 8), per_channel=True, projection_periods=2, pruning_periods=2)
    prepared = method.prepare(net().train(), data[0][0], [data[0][0]])
    optimizer = method.optimizer(prepared, STEPS, torch.optim.AdamW, lr=1e-3, weight_decay=0.01)
    for images, labels in data:
        nn.functional.cross_entropy(prepared.model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    report = method.finish(prepared, []).report
    assert report.removed == int(0.25 * prepared.num_prunable) and 4 <= report.weight_bits <= 8


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Geta(sparsity=1.0), "sparsity must be a number with 0 <= sparsity < 1"),
        (lambda: Geta(weight_bits=(8, 4)), "did you mean (4, 8)?"),
        (lambda: Geta(activation_bits=(4, 8, 9)), "two whole numbers"),
        (lambda: Geta(weight_bits=(1, 4)), "must lie in [2, 16]"),
        (lambda: PruneThenPtq(sparsity=-0.1), "sparsity"),
        (lambda: QatOnly(weight_bits=8, initial_bits=4), "initial_bits"),
    ],
)
def test_settings_that_cannot_be(build: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert words in str(caught.value)


def test_geta_stops_before_training_when_the_stages_do_not_fit() -> None:
    method = Geta(warmup=30, projection=30, joint=30)
    prepared = method.prepare(net().train(), torch.randn(2, 1, 8, 8), [torch.randn(4, 1, 8, 8)])
    with pytest.raises(ConfigError, match="must fit the run's 40 steps"):
        method.optimizer(prepared, STEPS, torch.optim.SGD, lr=0.1)
