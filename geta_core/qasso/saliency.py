"""How much a group matters: five criteria over all its rows, each L2-normalised over the groups, weighed and summed.

Source: arXiv:2502.16638 with the criteria of HESSO (arXiv:2409.09085). "Taylor 2" is half the squared first order term.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from geta_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SaliencyWeights:
    """Weight of each criterion in the sum.

    Raises:
        ConfigError: naming each weight that is negative, or that all are zero.
    """

    magnitude: float = 0.2
    """||x_g||"""
    average_magnitude: float = 0.2
    """||x_g|| / number of elements of the group"""
    cosine: float = 0.2
    """cos(x_g, g_g) + 1"""
    taylor1: float = 0.2
    """|<x_g, g_g>|"""
    taylor2: float = 0.2
    """<x_g, g_g>^2 / 2"""

    def __post_init__(self) -> None:
        faults = [
            f"saliency.{field.name} must be a number >= 0, but got {value!r}"
            for field, value in zip(fields(self), astuple(self), strict=True)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf")
        ]
        if not faults and not any(astuple(self)):
            faults.append("at least one saliency weight must be positive, but all are 0")
        if faults:
            raise ConfigError(faults)


def score_groups(sums: Tensor, size: Tensor, open_groups: Tensor, weights: SaliencyWeights) -> Tensor:
    """Return the score of each group, shape [groups]; groups that are not open score 0 and do not enter the norms.

    Args:
        sums: shape [3, groups]: <x, x>, <x, G>, <G, G> over the rows of each group, G the optimizer's movement.
        size: number of elements of each group, shape [groups].
        open_groups: bool, shape [groups]; False for groups that were pruned before.
        weights: weight of each criterion.
    """
    xx, xg, gg = sums.unbind()
    magnitude = xx.sqrt()
    length = magnitude * gg.sqrt()
    # Rows or movements that are zero have no direction: they count as orthogonal.
    cosine = (xg / length.masked_fill(length == 0, 1.0)).clamp(-1, 1)
    criteria = (magnitude, magnitude / size, cosine + 1, xg.abs(), 0.5 * xg.square())
    total = torch.zeros_like(xx)
    for weight, score in zip(astuple(weights), criteria, strict=True):
        score = score.masked_fill(~open_groups, 0.0)
        norm = torch.linalg.vector_norm(score)
        total = total + weight * score / norm.masked_fill(norm == 0, 1.0)
    return total
