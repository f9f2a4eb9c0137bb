"""Bit operations, average bits, and that measuring changes nothing."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.accounting import Layer, average_bits, bops, macs
from tests.geta_core.compressing import NETS, batch, build, compressed_net, prepare


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
CONV, LINEAR = 16 * 4 * 27, 64 * 5


def prepared(activation_bits: tuple[int, int] | None = None, **rest: object) -> geta.Prepared:
    config = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=activation_bits, **rest)  # type: ignore[arg-type]
    return geta.prepare(net(), X, config)


def set_bits(prepared: geta.Prepared, **bits: float) -> None:
    for site in prepared.sites:
        site.quantizer.set_bits_(bits[site.kind])


@pytest.mark.parametrize(
    ("weight", "activation", "percent"),
    [(4, None, 12.5), (8, None, 25.0), (16, None, 50.0), (4, 4, 1.5625), (8, 8, 6.25), (2, 16, 3.125)],
)
def test_relative_bops_at_one_bit_width(weight: int, activation: int | None, percent: float) -> None:
    made = prepared(None if activation is None else (4, 8))
    set_bits(made, weight=weight, input=activation or 0)
    measured = made.measure()
    assert measured.relative_bops(measured.macs) * 100 == percent
    assert made.status()["relative_bops"] * 100 == percent
    assert geta.finish(made).report.relative_bops * 100 == percent
    assert measured.bops == (CONV + LINEAR) * weight * (activation or 32)
    assert (measured.weight_bits, measured.activation_bits) == (weight, activation or 32)


def test_a_missing_quantizer_counts_32_bits() -> None:
    made = geta.prepare(net(), X, geta.CompressionConfig(weight_bits=None, activation_bits=(4, 8)))
    set_bits(made, input=4)
    assert made.measure().bops == (CONV + LINEAR) * 32 * 4
    assert geta.measure(net(), X).bops == (CONV + LINEAR) * 32 * 32


def test_average_bits_are_weighted_by_elements_and_by_layers() -> None:
    made = prepared((4, 8))
    conv, linear = (site for site in made.sites if site.kind == "weight")
    first, second = (site for site in made.sites if site.kind == "input")
    for site, bits in ((conv, 4), (linear, 8), (first, 4), (second, 7)):
        site.quantizer.set_bits_(bits)
    measured = made.measure()
    assert measured.weight_bits == (108 * 4 + 320 * 8) / 428
    assert measured.activation_bits == 5.5
    assert measured.bops == CONV * 4 * 4 + LINEAR * 8 * 7
    status = made.status()
    assert (status["weight_bits"], status["activation_bits"]) == (measured.weight_bits, measured.activation_bits)


def test_average_bits_follow_the_elements_that_stay() -> None:
    made = prepared()
    conv, linear = made.sites
    conv.quantizer.set_bits_(4)
    linear.quantizer.set_bits_(8)
    made.zero_([0])
    # Three channels of 27 and three times 16 columns for each of five rows stay.
    assert made.measure().weight_bits == (81 * 4 + 240 * 8) / 321


def test_channels_have_their_own_bits() -> None:
    made = prepared(per_channel=True)
    conv, linear = made.sites
    conv.quantizer.set_bits_(torch.tensor([4.0, 4.0, 6.0, 8.0]).view(4, 1, 1, 1))
    linear.quantizer.set_bits_(8)
    assert made.measure().bops == CONV * 5.5 * 32 + LINEAR * 8 * 32


def test_definitions_of_the_sums() -> None:
    rows = [
        Layer("a", "linear", 10.0, 4, 8, 5, True),
        Layer("b", "attention scores", 3.0, 32, 32, 0, False),
        Layer("c", "conv2d", 2.0, 8, 32, 15, True),
    ]
    assert (macs(rows), macs(rows, "all")) == (12, 15)
    assert (bops(rows), bops(rows, "all")) == (10 * 32 + 2 * 256, 10 * 32 + 2 * 256 + 3 * 1024)
    assert average_bits(rows) == ((5 * 4 + 15 * 8) / 20, (8 + 32) / 2)
    assert average_bits([]) == (32, 32)
    assert average_bits(rows[1:2]) == (32, 32)


def test_a_measurement_is_plain_data() -> None:
    measured = prepared((4, 8)).measure()
    again = json.loads(json.dumps(measured.as_dict()))
    assert again["bops"] == measured.bops
    assert [row["name"] for row in again["layers"]] == ["0.weight", "3.weight"]
    assert measured.relative_bops(0) == 0


def test_a_net_without_products() -> None:
    measured = geta.measure(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), torch.randn(2, 4))
    assert (measured.macs, measured.bops, measured.weight_bits, measured.activation_bits) == (0, 0, 32, 32)
    assert measured.parameters == 8


def state(model: nn.Module) -> list[tuple[str, int, Tensor, bool]]:
    held = (*model.named_parameters(), *model.named_buffers())
    return [(name, id(value), value.detach().clone(), value.requires_grad) for name, value in held]


@pytest.mark.parametrize("name", NETS)
def test_measuring_a_module_does_not_change_it(name: str) -> None:
    model = build(name).train()
    modules, before = list(model.modules()), state(model)
    classes = [type(module) for module in modules]
    geta.measure(model, batch(name))
    assert list(model.modules()) == modules
    assert [type(module) for module in modules] == classes
    assert all(module.training for module in modules)
    assert not any(module._forward_pre_hooks for module in modules)
    for (key, identity, value, grad), (key_2, identity_2, value_2, grad_2) in zip(before, state(model), strict=True):
        assert (key, identity, grad) == (key_2, identity_2, grad_2)
        assert torch.equal(value, value_2)


def test_measuring_a_prepared_model_does_not_change_it() -> None:
    made = prepare("resnet", "WA")
    before = state(made.model)
    made.measure()
    made.status()
    assert all(
        torch.equal(value, now) for (_, _, value, _), (_, _, now, _) in zip(before, state(made.model), strict=True)
    )


def test_measure_takes_all_three_forms() -> None:
    made, compressed = prepare("resnet", "W"), compressed_net("resnet", "W")
    assert geta.measure(made).as_dict() == made.measure().as_dict()
    assert geta.measure(compressed) is compressed.report.measurement
    assert geta.measure(made).as_dict() == geta.measure(compressed).as_dict()
    # The weights of a plain module count as floats, also where their values lie on a grid.
    plain = geta.measure(compressed.model, batch("resnet"))
    assert plain.macs == compressed.report.macs
    assert plain.bops == plain.macs * 32 * 32


def test_the_dense_baseline_is_taken_once_and_never_changes() -> None:
    """Defect 25 of the released code: a baseline counted on the model that is being compressed."""
    made = prepare("vgg7", "WA")
    dense = copy.deepcopy(made.dense)
    expected = geta.measure(build("vgg7"), batch("vgg7"))
    assert macs(dense) == expected.macs
    for share in range(3):
        report = geta.finish(made).report
        assert report.dense_macs == expected.macs
        assert report.dense.bops == expected.bops == expected.macs * 32 * 32
        assert report.dense_parameters == expected.parameters
        assert report.relative_bops == report.measurement.bops / expected.bops
        for site in made.sites:
            site.quantizer.set_bits_(8 - share)
    assert made.dense == dense
