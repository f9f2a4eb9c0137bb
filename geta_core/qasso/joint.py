"""Rules of the joint stage: how fast redundant groups are forgotten, and which step size goes with it.

Source: arXiv:2502.16638. With c the clipped weights, R the rounding residual (x^Q = c + d R) and G = lr * g the
movement of the inner optimizer without weight decay, all over the redundant rows of one layer, the cosines cancel:

    cos_gamma ||c|| = <c, G> / ||G||,  gamma = -(1 - eta) ||G|| / (cos_gamma ||c||)  = -(1 - eta) <G, G> / <c, G>
    cos_d ||R||     = <R, G> / ||G||,  d     = -zeta eta ||G|| / (gamma cos_d ||R||) = -zeta eta <G, G> / (gamma <R, G>)

No norm that may vanish is a divisor, no cosine can leave [-1, 1], and lr = 0 is no special case.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SHRINK = 0.8
"""The paper's factor of one turn of its loop: gamma *= 0.8, d /= 0.8."""


class Products(NamedTuple):
    """Inner products over the redundant rows of each segment, every one of shape [segments]."""

    gg: Tensor
    """<G, G>"""
    cc: Tensor
    """<c, c>"""
    cg: Tensor
    """<c, G>"""
    rg: Tensor
    """<R, G>"""


def without_noise(products: Products, eps: Tensor) -> Products:
    """Return the products with those of G set to 0 in segments where ||G|| <= 2 eps ||c||.

    G is a difference of parameter values. Where it is no larger than their rounding, as for a channel without gradient
    under weight decay, it has no direction, and neither rule may follow it.

    Args:
        products: inner products of the segments.
        eps: machine epsilon of each segment's parameters, shape [segments].
    """
    noise = products.gg <= (2 * eps).square() * products.cc
    gg, cg, rg = (value.masked_fill(noise, 0.0) for value in (products.gg, products.cg, products.rg))
    return Products(gg, products.cc, cg, rg)


def forget_rate(products: Products, uniform: float, eta: float) -> Tensor:
    """Return gamma for each segment, shape [segments].

    0 where c vanishes (decided by its norm), ``uniform`` where forgetting does not oppose descent (cos_gamma >= 0), and
    -(1 - eta) <G, G> / <c, G> where it does. The last is cut at 1, where the rows are gone at once: as cos_gamma tends
    to 0 the formula grows without bound, and a smaller rate descends all the more.
    """
    opposed = -(1 - eta) * products.gg / products.cg
    gamma = torch.where(products.cg < 0, opposed.clamp(max=1.0), torch.full_like(opposed, uniform))
    return gamma.masked_fill(products.cc == 0, 0.0)


def step_size(products: Products, gamma: Tensor, low: Tensor, high: Tensor, zeta_eta: float) -> tuple[Tensor, Tensor]:
    """Return (gamma, d) for each segment after the paper's adaptive rule, both of shape [segments].

    d is ``high`` (the fewest bits) where cos_d >= 0 or gamma = 0, else -zeta eta <G, G> / (gamma <R, G>). Where that is
    finer than ``low`` (the most bits), "while d < d_min: gamma *= 0.8, d /= 0.8" runs in closed form,
    n = ceil(log(d_min / d) / log(1 / 0.8)) turns. It differs from the loop by one turn where d_min / d is a power of
    1.25 up to rounding; d is in its range either way.

    Args:
        products: inner products of the segments.
        gamma: forget rates of ``forget_rate``.
        low: d_min = q_m^t / (2^(b_u - 1) - 1) of each segment, after the update of q_m and t.
        high: d_max = q_m^t / (2^(b_l - 1) - 1) of each segment, after the update of q_m and t.
        zeta_eta: product of the two constants.
    """
    ruled = -zeta_eta * products.gg / (gamma * products.rg)
    coarsest = ~((products.rg < 0) & (gamma > 0) & ruled.isfinite() & (ruled > 0))
    ruled = torch.where(coarsest, high, ruled)
    turns = torch.log(low / ruled).div(-math.log(SHRINK)).ceil().clamp(min=0)
    shrink = torch.full_like(turns, SHRINK).pow(turns)
    return gamma * shrink, torch.minimum(torch.maximum(ruled / shrink, low), high)
