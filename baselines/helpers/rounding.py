"""Which of its two neighbours on the grid each weight is rounded to: AdaRound (Nagel et al., arXiv:2004.10568).

With the weight W, the step s and the inputs z of the layer in the float model and x in the quantized one:

    W~ = s clip(floor(W / s) + h(V), n, p)                                      (Eq. 22)
    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), zeta 1.1, gamma -0.1  (Eq. 23)
    f_reg(V) = sum 1 - |2 h(V) - 1|^beta                                        (Eq. 24)
    minimise E||W z - W~ x||^2 + lambda f_reg(V) over V by Adam                 (Eq. 25)

beta falls from 20 to 2 after a warm start without f_reg. The error is a quadratic form of E[x x^T] and E[z x^T], so the
whole calibration set is used in every step at a cost that does not depend on its size.

Differs: the error is divided by that of rounding to nearest, per weight, so that one lambda fits every layer. The
paper's 0.01 is for errors in units of the outputs (``relative=False``): where outputs are large it is too weak to make
h whole, and rounding is then no better than to nearest; where they are small both find equally good roundings (a test
shows both). With fewer iterations
than the paper's 10000 the rate of Adam rises in proportion, so that V can go as far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
PUBLISHED_ITERATIONS = 10000
PUBLISHED_LAMBDA = 0.01


@dataclass(frozen=True)
class AdaRound:
    """Settings of the optimization, the paper's and its authors' by default.

    Attributes:
        iterations: steps of Adam.
        lr: rate of Adam with 10000 iterations.
        regularization: lambda.
        relative: lambda is for errors in units of the mean error per weight of rounding to nearest; False: in units of
            the outputs, as in the paper, whose lambda is ``PUBLISHED_LAMBDA``.
        beta_start: beta after the warm start.
        beta_end: beta at the end.
        warm_start: share of the iterations without the regularization.
    """

    iterations: int = PUBLISHED_ITERATIONS
    lr: float = 1e-3
    regularization: float = 10.0
    relative: bool = True
    beta_start: float = 20.0
    beta_end: float = 2.0
    warm_start: float = 0.2

    def beta(self, iteration: int) -> float | None:
        """Return beta in an iteration (from 0); None while there is no regularization."""
        start = int(self.warm_start * self.iterations)
        if iteration < start:
            return None
        done = (iteration - start) / max(self.iterations - start, 1)
        return self.beta_end + (self.beta_start - self.beta_end) * (1 - done)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Return h(V), in [0, 1]."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial(fraction: Tensor) -> Tensor:
    """Return the V for which h(V) is the given fraction, in [0, 1)."""
    return torch.logit((fraction - GAMMA) / (ZETA - GAMMA))


def output_error(weight: Tensor, wanted: Tensor, xx: Tensor, zx: Tensor) -> Tensor:
    """Return E||wanted z - weight x||^2 of every row, without the part that no weight changes, [..., rows].

    Args:
        weight: [..., rows, columns].
        wanted: the float weight, shaped alike.
        xx: E[x x^T], [..., columns, columns].
        zx: E[z x^T], [..., columns, columns].
    """
    return (weight * (weight @ xx - 2 * (wanted @ zx))).sum(-1)


def adaround(weight: Tensor, step: Tensor, top: int, xx: Tensor, zx: Tensor, settings: AdaRound) -> Tensor:
    """Return the whole numbers n, in [-top, top], for which n * step is the rounded weight.

    A row whose error would be larger than with rounding to nearest keeps that; a weight that is zero stays zero.

    Args:
        weight: [groups, rows, columns].
        step: [groups, rows, 1].
        top: largest level; the grid is symmetric.
        xx: E[x x^T], [groups, columns, columns].
        zx: E[z x^T], [groups, columns, columns].
        settings: of the optimization.
    """
    weight, step = weight.double(), step.double()
    scaled = weight / step
    floor = scaled.floor()
    nearest = scaled.round().clamp(-top, top)
    # The search is in float32; what it found is compared with rounding to nearest in float64.
    v = initial(scaled - floor).float().requires_grad_()
    adam = torch.optim.Adam([v], lr=settings.lr * max(1.0, PUBLISHED_ITERATIONS / settings.iterations))
    fixed = [each.float() for each in (step, floor, 2 * xx, 2 * (weight @ zx))]
    unit = _nearest_error(weight, nearest * step, xx) / weight.numel() if settings.relative else 1.0
    with torch.enable_grad():
        for iteration in range(settings.iterations):
            h = rectified_sigmoid(v)
            soft = fixed[0] * (fixed[1] + h).clamp(-top, top)
            # The error's own gradient, so that each step has one matrix product.
            slope = (soft.detach() @ fixed[2] - fixed[3]) / unit
            loss = (soft * slope).sum()
            beta = settings.beta(iteration)
            if beta is not None:
                loss = loss + settings.regularization * (1 - (2 * h - 1).abs().pow(beta)).sum()
            (v.grad,) = torch.autograd.grad(loss, v)
            adam.step()
    up = (rectified_sigmoid(v.detach()) >= 0.5) & (weight != 0)
    hard = (floor + up).clamp(-top, top)
    errors = [output_error(levels * step, weight, xx, zx) for levels in (hard, nearest)]
    return torch.where((errors[0] <= errors[1]).unsqueeze(-1), hard, nearest)


def _nearest_error(weight: Tensor, nearest: Tensor, xx: Tensor) -> Tensor:
    """Return E||(W - W~) x||^2 of rounding to nearest for the same inputs, 0-dim and positive."""
    gap = weight - nearest
    error = ((gap @ xx) * gap).sum()
    return torch.where(error > 0, error, torch.ones_like(error))
