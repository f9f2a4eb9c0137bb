"""Post-training quantization: ranges of least squared error, found per site on data (no training).

The search is the usual one of post-training quantization: among shares of the largest magnitude, take the range whose
grid has the least mean squared error (Nagel et al., arXiv:2106.08295, section 3.1, "MSE").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.quantize.math import quantize, step_for_bits

SHARES = 80
"""Ranges that are tried, from the whole of the largest magnitude down to 1/80 of it."""
SAMPLES = 1 << 16
"""Values of an input that are kept per calibration batch."""


def fit_ranges_(prepared: geta.Prepared, batches: Sequence[Any], weight_bits: int, input_bits: int | None) -> None:
    """Set range and bit width of every quantizer, in place.

    Args:
        prepared: a model with quantizers.
        batches: model inputs from the training data.
        weight_bits: of every weight.
        input_bits: of every layer input; None where there are no input quantizers.
    """
    inputs = [site for site in prepared.sites if site.kind == "input" and site.fired]
    seen = sample_inputs(prepared.model, [site.quantizer for site in inputs], batches)
    with torch.no_grad():
        for site in prepared.sites:
            if site.kind == "weight" and site.parameter is not None:
                fit_quantizer_(site.quantizer, site.parameter, weight_bits)
        for site, values in zip(inputs, seen, strict=True):
            if input_bits is not None and values is not None:
                fit_quantizer_(site.quantizer, values, input_bits)


def fit_quantizer_(quantizer: Any, values: Tensor, bits: int) -> None:
    """Give one quantizer the range of least squared error for these values, and a bit width."""
    axis = quantizer.channel_axis
    rows = values.detach().reshape(1, -1) if axis is None else values.detach().movedim(axis, 0).flatten(1)
    ranges = least_squares_range(rows, bits, quantizer.signed)
    quantizer.set_bits_(bits)
    quantizer.set_range_(ranges.reshape(quantizer.q_m.shape))


def least_squares_range(rows: Tensor, bits: int, signed: bool) -> Tensor:
    """Return, for each row, the range whose grid reproduces the row with the least squared error.

    Args:
        rows: values [R, N].
        bits: bit width of the grid.
        signed: whether the grid has negative levels.

    Returns:
        Ranges [R], positive; 1 for a row of zeros.
    """
    largest = rows.abs().amax(1) if signed else rows.amax(1).clamp(min=0)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    best, least = largest, torch.full_like(largest, torch.inf)
    for number in range(SHARES, 0, -1):
        q_m = (largest * (number / SHARES)).unsqueeze(1)
        error = (quantize(rows, step_for_bits(bits, q_m, None, signed), q_m, None, signed) - rows).square().mean(1)
        best = torch.where(error < least, q_m.squeeze(1), best)
        least = torch.minimum(error, least)
    return best


@torch.no_grad()
def sample_inputs(model: nn.Module, quantizers: Sequence[nn.Module], batches: Sequence[Any]) -> list[Tensor | None]:
    """Return values that reach each quantizer, flat; None where nothing arrives. The model runs in evaluation mode."""
    kept: list[list[Tensor]] = [[] for _ in quantizers]
    handles = [
        quantizer.register_forward_pre_hook(_keeper(values)) for quantizer, values in zip(quantizers, kept, strict=True)
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            call(model, batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return [torch.cat(values) if values else None for values in kept]


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple of positional inputs or a dict of keyword inputs."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _keeper(values: list[Tensor]) -> Any:
    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        flat = arguments[0].detach().flatten()
        # Evenly spaced values instead of random ones: the same sample every time.
        step = -(-flat.numel() // SAMPLES)
        values.append(flat[::step].float())

    return keep
