"""Ranges of least squared error against a plain search in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.ptq import SHARES, fit_quantizer_, least_squares_range, sample_inputs
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


def test_a_row_of_zeros_has_a_range() -> None:
    assert least_squares_range(torch.zeros(2, 5), 4, True).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_quantizer_gets_range_and_bits(axis: int | None) -> None:
    values = torch.randn(6, 5)
    shape = [1, 1]
    if axis is not None:
        shape[axis] = values.shape[axis]
    quantizer = Quantizer(torch.ones(shape if axis is not None else ()), 16, learn_exponent=False, channel_axis=axis)
    fit_quantizer_(quantizer, values, 4)
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
