"""Ranges against numpy and a plain search in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.helpers.calling import sample_inputs
from baselines.helpers.ranges import SHARES, RangeKind, RangeRule, fit_quantizer_, least_squares_range, magnitude_range
from geta_core.quantize import Quantizer


def reference_error(values: np.ndarray, q_m: float, bits: int, signed: bool) -> float:
    """Mean squared error of a uniform grid, written without the engine."""
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = q_m / top
    low = -q_m if signed else 0.0
    return float(np.mean((np.round(np.clip(values, low, q_m) / step) * step - values) ** 2))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_range_is_the_best_of_the_tried_ones(bits: int, signed: bool) -> None:
    values = torch.randn(3, 4000, dtype=torch.float64) ** 3
    values = values if signed else values.clamp(min=0)
    found = least_squares_range(values, bits, signed)
    for row, q_m in zip(values.numpy(), found.tolist(), strict=True):
        tried = [float(np.abs(row).max()) * share / SHARES for share in range(1, SHARES + 1)]
        errors = [reference_error(row, each, bits, signed) for each in tried]
        assert reference_error(row, q_m, bits, signed) <= min(errors) * (1 + 1e-9)


def test_it_beats_the_largest_magnitude_where_there_are_outliers() -> None:
    values = torch.randn(1, 10000)
    values[0, 0] = 12.0
    q_m = least_squares_range(values, 4, True).item()
    row = values.numpy()[0]
    assert reference_error(row, q_m, 4, True) < 0.2 * reference_error(row, 12.0, 4, True)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("percentile", [100.0, 99.99, 99.0, 90.0, 50.0])
def test_percentiles_are_those_of_numpy(percentile: float, signed: bool) -> None:
    values = torch.randn(4, 1001, dtype=torch.float64)
    magnitudes = np.abs(values.numpy()) if signed else np.maximum(values.numpy(), 0)
    found = RangeRule("percentile", percentile)(values, 8, signed)
    wanted = np.percentile(magnitudes, percentile, axis=1)
    if signed or percentile > 50:
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    else:  # half of the values are negative: a range of 0 would quantize nothing
        assert torch.equal(found[wanted == 0], values.amax(1)[wanted == 0])


@pytest.mark.parametrize("signed", [True, False])
def test_minmax_is_the_largest_magnitude(signed: bool) -> None:
    values = torch.randn(4, 1001)
    wanted = values.abs().amax(1) if signed else values.amax(1)
    assert torch.equal(RangeRule("minmax")(values, 8, signed), wanted)
    assert torch.equal(magnitude_range(values, 1.0, signed), wanted)


def test_each_rule_is_the_best_at_what_it_is_for() -> None:
    """With outliers, squared error prefers mse, then a percentile, then the maximum."""
    values = torch.randn(1, 20000, dtype=torch.float64)
    values[0, :3] = 40.0
    row = values.numpy()[0]
    errors = [
        reference_error(row, rule(values, 4, True).item(), 4, True)
        for rule in (RangeRule("mse"), RangeRule("percentile", 99.9), RangeRule("minmax"))
    ]
    assert errors[0] < errors[1] < errors[2], errors


@pytest.mark.parametrize("kind", ["minmax", "percentile", "mse"])
def test_a_row_of_zeros_has_a_range(kind: RangeKind) -> None:
    assert RangeRule(kind)(torch.zeros(2, 5), 4, True).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_quantizer_gets_range_and_bits(axis: int | None) -> None:
    values = torch.randn(6, 5)
    shape = [1, 1]
    if axis is not None:
        shape[axis] = values.shape[axis]
    quantizer = Quantizer(torch.ones(shape if axis is not None else ()), 16, learn_exponent=False, channel_axis=axis)
    fit_quantizer_(quantizer, values, 4, RangeRule("mse"))
    assert torch.equal(quantizer.bits(), torch.full_like(quantizer.d, 4))
    if axis is not None:
        rows = values.movedim(axis, 0).flatten(1)
        assert torch.allclose(quantizer.q_m.flatten(), least_squares_range(rows, 4, True), atol=0, rtol=1e-6)


def test_samples_are_what_reaches_the_quantizers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Identity(), torch.nn.Identity())
    batches = [torch.randn(2, 4), torch.randn(5, 4)]
    unused = torch.nn.Identity()
    model.train()
    seen, nothing = sample_inputs(model, [model[1], unused], batches)
    assert nothing is None and seen is not None
    assert torch.equal(seen, torch.cat([model[0](batch).flatten() for batch in batches]))
    assert model.training and not model[1]._forward_pre_hooks
