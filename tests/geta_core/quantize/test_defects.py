"""Defects of the released code that concern the quantizer, numbered as in the project's list; none may come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geta_core.quantize import Attention, attach, calibrate_, levels, quantize_backward
from tests.geta_core.quantize.nets import Tied, config, quantized, triple


def test_defect_17_activation_ranges_do_not_come_from_the_weights() -> None:
    layer = nn.Linear(16, 8)
    with torch.no_grad():
        layer.weight.mul_(0.01)
    batch = torch.randn(64, 16) * 10
    _, data = quantized(layer, batch, config(bits=8))
    assert data.quantizer.q_m.item() == batch.abs().max().item()
    assert (batch.abs() > data.quantizer.q_m).sum() == 0
    assert (data.quantizer(batch) - batch).abs().max() <= data.quantizer.d / 2 * 1.001


@pytest.mark.parametrize("q_m", [0.5, 2.0, 7.0])
@pytest.mark.parametrize("exponent", [None, 1.2])
def test_defect_18_straight_through_is_cut_at_q_m_and_not_at_two(q_m: float, exponent: float | None) -> None:
    x = torch.linspace(-10, 10, 2001)
    d, top, *rest = triple(q_m, 6, exponent, True)
    g_x = quantize_backward(torch.ones_like(x), x, d, top, rest[0] if rest else None, True)[0]
    assert torch.equal(g_x, (x.abs() <= q_m).float())


def test_defect_18_the_slope_of_the_power_is_available() -> None:
    x = torch.linspace(0.1, 1.9, 50, dtype=torch.float64)
    d, q_m, t = triple(2.0, 6, 1.3, True, torch.float64)
    g_x = quantize_backward(torch.ones_like(x), x, d, q_m, t, True, chain_rule=True)[0]
    assert torch.allclose(g_x, 1.3 * x**0.3, rtol=1e-12)


def test_defect_19_inputs_after_relu_use_all_levels() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    batch = torch.linspace(-1, 1, 4000).view(-1, 4)
    _, data = quantized(net, batch, config(bits=4))
    assert not data.quantizer.signed
    assert data.quantizer(batch.relu()).unique().numel() == 16


def test_defect_19_reported_bits_are_those_of_the_levels() -> None:
    layer = nn.Linear(200, 50)
    (site,) = attach(layer, config(inputs=False, bits=4))
    used = levels(
        layer.parametrizations.weight.original, *(getattr(site.quantizer, n) for n in ("d", "q_m", "t")), True
    )
    assert site.quantizer.bits().item() == 4
    assert used.unique().numel() == 2**4 - 1


def test_defect_19_weights_may_be_quantized_per_channel() -> None:
    layer = nn.Conv2d(3, 5, 3)
    (site,) = attach(layer, config(inputs=False, per_channel=True))
    assert site.quantizer.d.shape == (5, 1, 1, 1)


def test_defect_20_every_layer_type_is_quantized_whatever_its_class_is_called() -> None:
    class Renamed(nn.Linear):
        pass

    net = nn.ModuleList(
        [
            *(Renamed(4, 4), nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)),
            nn.MultiheadAttention(4, 2),
        ]
    )
    names = [site.name for site in attach(net, config(inputs=False))]
    assert names == ["0.weight", "1.weight", "2.weight", "3.weight", "4.in_proj_weight", "4.out_proj.weight"]
    assert isinstance(net[4], Attention)


def test_defect_20_ties_stay_tied() -> None:
    net = Tied()
    assert len(attach(net, config(inputs=False))) == 1
    assert net.embedding.parametrizations.weight.original is net.head.parametrizations.weight.original


def test_defect_20_options_of_the_layer_are_kept() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", dtype=torch.float64)
    batch = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    want = layer(batch)
    sites = attach(layer, config(bits=16))
    calibrate_(layer, sites, [batch], lambda module, x: module(x))
    got = layer(batch)
    assert got.dtype == torch.float64
    assert torch.allclose(got, want, atol=1e-3)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
