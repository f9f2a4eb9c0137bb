"""Ranges of quantizers from data, without training (Nagel et al., arXiv:2106.08295, section 3.1).

``minmax``: the largest magnitude. ``percentile``: the given percentile of the magnitudes, so that outliers are cut off.
``mse``: among shares of the largest magnitude, the range whose grid has the least mean squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import geta_core as geta
from baselines.helpers.calling import sample_inputs
from geta_core.quantize.math import quantize, step_for_bits
from geta_core.quantize.quantizer import Quantizer

SHARES = 80
"""Ranges that ``mse`` tries, from the whole of the largest magnitude down to 1/80 of it."""

RangeKind = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True)
class RangeRule:
    """How ranges are found.

    Attributes:
        kind: the rule.
        percentile: of the magnitudes, in (0, 100]; ``percentile`` alone uses it.
    """

    kind: RangeKind = "mse"
    percentile: float = 99.99

    def __call__(self, rows: Tensor, bits: int, signed: bool) -> Tensor:
        """Return the range of each row.

        Args:
            rows: values [R, N].
            bits: bit width of the grid.
            signed: whether the grid has negative levels.

        Returns:
            Ranges [R], positive; 1 for a row of zeros.
        """
        if self.kind == "mse":
            return least_squares_range(rows, bits, signed)
        share = 1.0 if self.kind == "minmax" else self.percentile / 100
        return magnitude_range(rows, share, signed)


def fit_ranges_(
    prepared: geta.Prepared, batches: Sequence[Any], weight_bits: int | None, input_bits: int | None, rule: RangeRule
) -> None:
    """Set range and bit width of every quantizer, in place.

    Args:
        prepared: a model with quantizers.
        batches: model inputs from the training data.
        weight_bits: of every weight; None where there are no weight quantizers.
        input_bits: of every layer input; None where there are no input quantizers.
        rule: how ranges are found.
    """
    inputs = [site for site in prepared.sites if site.kind == "input"]
    seen = sample_inputs(prepared.model, [site.quantizer for site in inputs], batches)
    with torch.no_grad():
        for site in prepared.sites:
            if weight_bits is not None and site.kind == "weight" and site.parameter is not None:
                fit_quantizer_(site.quantizer, site.parameter, weight_bits, rule)
        for site, values in zip(inputs, seen, strict=True):
            if input_bits is not None and values is not None:
                fit_quantizer_(site.quantizer, values, input_bits, rule)


def fit_quantizer_(quantizer: Quantizer, values: Tensor, bits: int, rule: RangeRule) -> None:
    """Give one quantizer the range of these values, and a bit width."""
    axis = quantizer.channel_axis
    rows = values.detach().reshape(1, -1) if axis is None else values.detach().movedim(axis, 0).flatten(1)
    ranges = rule(rows, bits, quantizer.signed)
    quantizer.set_bits_(bits)
    quantizer.set_range_(ranges.reshape(quantizer.q_m.shape))


def magnitude_range(rows: Tensor, share: float, signed: bool) -> Tensor:
    """Return, for each row, the quantile of the magnitudes, with linear interpolation between neighbours.

    Args:
        rows: values [R, N].
        share: of the values that lie inside, in (0, 1].
        signed: whether the grid has negative levels; without them negative values count as 0.

    Returns:
        Ranges [R], positive; the largest magnitude where the quantile is 0, and 1 for a row of zeros.
    """
    # Sorted here: torch.quantile takes no more than 16 million values.
    ordered = (rows.abs() if signed else rows.clamp(min=0)).sort(1).values
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    found = ordered[:, below].lerp(ordered[:, above], place - below)
    found = torch.where(found > 0, found, ordered[:, -1])
    return torch.where(found > 0, found, torch.ones_like(found))


def least_squares_range(rows: Tensor, bits: int, signed: bool) -> Tensor:
    """Return, for each row, the range whose grid reproduces the row with the least squared error.

    Args:
        rows: values [R, N].
        bits: bit width of the grid.
        signed: whether the grid has negative levels.

    Returns:
        Ranges [R], positive; 1 for a row of zeros.
    """
    largest = magnitude_range(rows, 1.0, signed)
    best, least = largest, torch.full_like(largest, torch.inf)
    for number in range(SHARES, 0, -1):
        q_m = (largest * (number / SHARES)).unsqueeze(1)
        error = (quantize(rows, step_for_bits(bits, q_m, None, signed), q_m, None, signed) - rows).square().mean(1)
        best = torch.where(error < least, q_m.squeeze(1), best)
        least = torch.minimum(error, least)
    return best
