"""Distributions of gates: hard concrete (L0 regularization) and the variational information bottleneck.

Hard concrete (Louizos et al., arXiv:1712.01312, section 2.2, Eq. 10 to 13) with logit phi, temperature tau and limits
gamma < 0 < 1 < zeta::

    s = sigmoid((log u - log(1 - u) + phi) / tau),   z = min(1, max(0, s (zeta - gamma) + gamma)),   u ~ U(0, 1)
    P(z = 0) = sigmoid(tau log(-gamma / zeta) - phi)

Variational information bottleneck (Dai et al., arXiv:1802.10399, Eq. 8 to 10): z ~ N(mu, sigma^2) multiplies a channel;
against the best zero-mean normal prior its cost is KL = 1/2 log(1 + mu^2 / sigma^2), and a channel with a small
signal-to-noise ratio mu^2 / sigma^2 carries no information.

Pure functions; the random numbers are arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""tau, gamma and zeta of arXiv:1712.01312, section 4."""
CLOSED = TEMPERATURE * math.log(-GAMMA / ZETA)
"""The logit at which P(z = 0) = 1/2."""
LEAST_UNIFORM = 1e-6


def hard_concrete(logit: Tensor, uniform: Tensor) -> Tensor:
    """Return z in [0, 1], shaped like the logits.

    Args:
        logit: phi.
        uniform: numbers in [0, 1) of the same shape.
    """
    u = uniform.clamp(LEAST_UNIFORM, 1 - LEAST_UNIFORM)
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + logit) / TEMPERATURE)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def probability_closed(logit: Tensor) -> Tensor:
    """Return P(z = 0)."""
    return torch.sigmoid(CLOSED - logit)


def probability_open(logit: Tensor) -> Tensor:
    """Return P(z > 0), the gate's share of the L0 penalty."""
    return torch.sigmoid(logit - CLOSED)


def is_open(logit: Tensor, threshold: float) -> Tensor:
    """Return the gate that is used once training ends: open where P(z = 0) < threshold."""
    return probability_closed(logit) < threshold


def information(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of N(mu, sigma^2) from the best N(0, xi): 1/2 log(1 + mu^2 / sigma^2), elementwise."""
    return 0.5 * torch.log1p(signal_to_noise(mu, log_variance))


def signal_to_noise(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Return alpha = mu^2 / sigma^2, elementwise."""
    return mu.square() * torch.exp(-log_variance)


def normal(mu: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Return mu + sigma noise; ``noise`` is standard normal."""
    return mu + torch.exp(0.5 * log_variance) * noise
