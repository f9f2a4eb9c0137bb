"""Unstructured zeros: counted under a name of their own, never in the default."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import geta_core as geta
from geta_core.accounting import Layer, bops


def test_the_default_does_not_see_zeros_and_the_sparse_count_sees_each_of_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=(8, 8), initial_bits=8, learn_exponent=False)
    prepared = geta.prepare(model, torch.randn(2, 3, 8, 8), config)
    conv, linear = prepared.sites
    assert conv.parameter is not None and linear.parameter is not None
    with torch.no_grad():
        conv.parameter.fill_(0.5)
        conv.parameter.view(-1)[:54].zero_()  # half of the elements, but no whole output channel's ...
        conv.parameter[0, 0, 0, 0] = 0.5  # ... as this keeps the first one alive, and 53 of 108 are zero
        conv.parameter[1, 0, 0, 0] = 0.5
        linear.parameter.fill_(0.25)
    report = geta.finish(prepared).report
    conv_macs, linear_macs = 108 * 36, 720
    assert report.removed == 0
    assert report.relative_bops == pytest.approx(8 * 32 / 1024)
    expected = 8 * 32 * (conv_macs * 56 / 108 + linear_macs)
    assert report.measurement.bops_sparse == pytest.approx(expected, rel=1e-12)
    assert report.relative_sparse_bops == pytest.approx(expected / (1024 * (conv_macs + linear_macs)), rel=1e-12)
    assert [row.density for row in report.layers] == [56 / 108, 1.0]


def test_the_sparse_sum() -> None:
    rows = [Layer("a", "linear", 10.0, 4, 8, 5, True, 0.25), Layer("b", "scores", 3.0, 32, 32, 0, False)]
    assert bops(rows, "sparse") == 80 and bops(rows) == 320
