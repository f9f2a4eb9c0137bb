"""Unstructured sparsity: masks on single weights in front of their quantizers, and grids fitted to what is kept.

A kept weight never rounds to zero (its magnitude is raised to one step before the quantizer), so that zeros are those
of the mask and nothing else: a method's sparsity is what it was asked for, and a grid of b bits gives the kept weights
2^b - 2 values. Gradients pass mask and raising straight through: a weight that is masked now can come back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.swapping import swap_
from geta_core.quantize import Quantizer, QuantSite


class MaskedQuantizer(nn.Module):
    """Stands in for a weight's quantizer: mask, then quantize; one or both may be off.

    Attributes:
        mask: bool, shaped like the weight; part of the state.
        masking: whether the mask is applied.
        quantizing: whether the kept weights are quantized. Both follow from the schedule and are never saved.
    """

    mask: Tensor

    def __init__(self, site: QuantSite) -> None:
        super().__init__()
        assert site.parameter is not None
        self.inner: Quantizer = site.quantizer
        self.register_buffer("mask", torch.ones_like(site.parameter, dtype=torch.bool))
        self.masking = self.quantizing = False

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as the layer sees it."""
        if not self.masking and not self.quantizing:
            return weight
        value = masked(weight.detach(), self.mask, self.inner.d.detach() if self.quantizing else None)
        through = weight + (value - weight.detach())
        if not self.quantizing:
            return through
        quantized: Tensor = self.inner(through)
        return quantized


def masked(weight: Tensor, mask: Tensor, step: Tensor | None) -> Tensor:
    """Return the kept weights, at least one step large where a step is given, and zero elsewhere."""
    if step is not None:
        weight = torch.copysign(weight.abs().maximum(step.to(weight.dtype)), weight)
    return torch.where(mask, weight, torch.zeros_like(weight))


def put_on_(prepared: geta.Prepared) -> None:
    """Put a mask in front of every weight's quantizer."""
    for site in prepared.sites:
        if site.kind == "weight":
            swap_(site, site.quantizer, MaskedQuantizer(site))


def masks_of(prepared: geta.Prepared) -> list[MaskedQuantizer]:
    """Return the masks in the order of the weight sites."""
    found = {id(each.inner): each for each in prepared.model.modules() if isinstance(each, MaskedQuantizer)}
    return [found[id(site.quantizer)] for site in prepared.sites if site.kind == "weight"]


@torch.no_grad()
def take_off_(prepared: geta.Prepared) -> None:
    """Write masked weights into the parameters and put the quantizers back."""
    for site, each in zip([site for site in prepared.sites if site.kind == "weight"], masks_of(prepared), strict=True):
        parameter = site.parameter
        assert parameter is not None
        parameter.copy_(masked(parameter, each.mask, each.inner.d))
        swap_(site, each, each.inner)


def largest_mask(magnitudes: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return masks of the ``count`` largest values over all tensors, exactly as many; ties keep the earlier element."""
    flat = torch.cat([each.reshape(-1) for each in magnitudes])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[torch.sort(flat, descending=True, stable=True).indices[:count]] = True
    parts = torch.split(mask, [each.numel() for each in magnitudes])
    return [part.view_as(each) for part, each in zip(parts, magnitudes, strict=True)]


def kept_levels(magnitude: Tensor, step: Tensor, bits: int) -> Tensor:
    """Return the whole numbers 1 .. 2^(b-1) - 1 that magnitudes of kept weights have on a grid."""
    level: Tensor = (magnitude / step).round().clamp(1, 2 ** (bits - 1) - 1)
    return level


def refit_step(magnitude: Tensor, mask: Tensor, step: Tensor, bits: int, rounds: int = 1) -> Tensor:
    """Return the step of least squared error for the kept weights, by turns for levels and step, 0-dim.

    Each round keeps or lowers the error: d = sum |w| n / sum n^2 is the best step for the levels n.

    Args:
        magnitude: |w|.
        mask: kept weights; without any, the step stays what it is.
        step: where the search starts.
        bits: of the signed grid.
        rounds: turns.
    """
    kept = mask.to(magnitude.dtype)
    for _ in range(rounds):
        level = kept_levels(magnitude, step, bits) * kept
        total = level.square().sum()
        step = torch.where(total > 0, (magnitude * level).sum() / total.clamp(min=1), step)
    return step.clamp(min=torch.finfo(magnitude.dtype).tiny)


def first_step(magnitude: Tensor, bits: int) -> Tensor:
    """Return a step to start from: the grid's highest level at the largest magnitude."""
    largest = magnitude.max()
    step: Tensor = torch.where(largest > 0, largest, torch.ones_like(largest)) / (2 ** (bits - 1) - 1)
    return step
