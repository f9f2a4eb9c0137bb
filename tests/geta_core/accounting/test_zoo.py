"""Whole networks: torch's own counter, published numbers, and sums written by hand."""

from __future__ import annotations

import pytest
import torch

import geta_core as geta
from orchestration.models import available, build, build_small, example_inputs
from tests.geta_core.accounting.counting import flop_counter_macs


@pytest.mark.parametrize("name", list(available()))
def test_macs_of_every_registered_net(name: str) -> None:
    model, inputs = build_small(name), example_inputs(name, small=True)
    measured = geta.measure(model, inputs)
    assert measured.macs_all == flop_counter_macs(model, *inputs)
    assert measured.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert measured.bops == measured.macs * 32 * 32
    attention = [row for row in measured.layers if not row.counted]
    assert measured.macs_all - measured.macs == sum(row.macs for row in attention)
    assert measured.bytes == sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def resnet20_macs() -> int:
    total = 32 * 32 * 3 * 16 * 9
    for stage, (inputs, channels, side) in enumerate([(16, 16, 32), (16, 32, 16), (32, 64, 8)]):
        first = inputs * channels * 9 + (inputs * channels if stage else 0)
        total += side**2 * (first + 5 * channels**2 * 9)
    return total + 64 * 10


def vgg7_macs() -> int:
    convolutions = 32**2 * (3 * 128 + 128**2) + 16**2 * (128 * 256 + 256**2) + 8**2 * (256 * 512 + 512**2)
    return 9 * convolutions + 512 * 1024 + 1024 * 10


@pytest.mark.parametrize(
    ("name", "side", "macs"),
    [
        ("resnet20", 32, resnet20_macs()),
        ("vgg7", 32, vgg7_macs()),
        # torchvision's table of weights, in giga-operations: 1.81 and 4.09.
        ("resnet18", 224, 1_814_073_344),
        ("resnet50", 224, 4_089_184_256),
    ],
)
def test_published_macs(name: str, side: int, macs: int) -> None:
    measured = geta.measure(build(name), torch.zeros(2, 3, side, side))
    assert measured.macs == macs
    if name == "resnet20":
        # 40.55 million with identity shortcuts (He et al.), and the two convolution shortcuts.
        assert macs == 40_551_040 + 16 * 32 * 16**2 + 32 * 64 * 8**2


def test_bert_macs_per_token() -> None:
    # 7,077,888 per layer and token: four projections of 768 and two of 768 x 3072; 12 layers make 84,934,656.
    tokens, layer = 4, 4 * 768**2 + 2 * 768 * 3072
    assert layer == 7_077_888
    one, three = (geta.measure(build("bert_layers", depth=d), torch.zeros(2, tokens, 768)) for d in (1, 3))
    assert one.macs == tokens * layer
    assert three.macs == 3 * one.macs
    assert one.macs_all - one.macs == 2 * tokens**2 * 768
