"""Distributions of gates against integrals, closed forms and large samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from baselines.helpers import gates

SAMPLES = 400_000


@pytest.mark.parametrize("logit", [-2.0, -0.5, 0.0, 1.5, 3.0])
def test_hard_concrete_has_its_mass_at_zero_and_one_and_its_mean(logit: float) -> None:
    phi = torch.full((SAMPLES,), logit, dtype=torch.float64)
    z = gates.hard_concrete(phi, torch.rand(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    noise = 4 / math.sqrt(SAMPLES)  # four standard deviations of a share, at most
    assert abs(float((z == 0).double().mean()) - float(gates.probability_closed(phi[0]))) < noise
    # P(z = 1) = P(s > (1 - gamma) / (zeta - gamma)) by the quantile of the logistic distribution.
    edge = (1 - gates.GAMMA) / (gates.ZETA - gates.GAMMA)
    at_one = 1 - stats.logistic.cdf(gates.TEMPERATURE * math.log(edge / (1 - edge)) - logit)
    assert abs(float((z == 1).double().mean()) - at_one) < noise

    def stretched(u: float) -> float:
        s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + logit) / gates.TEMPERATURE))
        return min(1.0, max(0.0, s * 1.2 - 0.1))

    mean, _ = integrate.quad(stretched, 0, 1, limit=400)
    assert abs(float(z.mean()) - mean) < noise
    assert ((z >= 0) & (z <= 1)).all()


def test_open_and_closed_are_complements_and_the_threshold_is_one_of_probability() -> None:
    phi = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    assert torch.allclose(gates.probability_open(phi) + gates.probability_closed(phi), torch.ones_like(phi), atol=1e-15)
    assert torch.equal(gates.is_open(phi, 0.34), gates.probability_closed(phi) < 0.34)
    assert gates.probability_closed(torch.tensor(gates.CLOSED, dtype=torch.float64)) == 0.5


@pytest.mark.parametrize(("mu", "sigma"), [(1.0, 0.1), (0.3, 0.5), (-2.0, 1.0), (0.01, 1.0)])
def test_information_is_the_kl_divergence_from_the_best_zero_mean_normal(mu: float, sigma: float) -> None:
    def divergence(width: float) -> float:
        def integrand(x: float) -> float:
            log_p, log_q = stats.norm.logpdf(x, mu, sigma), stats.norm.logpdf(x, 0, width)
            return math.exp(log_p) * (log_p - log_q)

        value, _ = integrate.quad(integrand, mu - 12 * sigma, mu + 12 * sigma, limit=200)
        return value

    best = math.sqrt(mu**2 + sigma**2)
    found = float(gates.information(torch.tensor(mu), torch.tensor(2 * math.log(sigma))))
    assert found == pytest.approx(divergence(best), rel=1e-5, abs=1e-7)
    # No other width of the prior is better.
    assert all(divergence(best * factor) >= divergence(best) for factor in (0.8, 0.95, 1.05, 1.3))


def test_a_normal_gate_has_its_moments() -> None:
    noise = torch.randn(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = gates.normal(torch.tensor(0.7).double(), torch.tensor(math.log(0.04)).double(), noise)
    assert abs(float(z.mean()) - 0.7) < 4 * 0.2 / math.sqrt(SAMPLES)
    assert np.isclose(float(z.var()), 0.04, rtol=0.01)
    assert float(gates.signal_to_noise(torch.tensor(0.7), torch.tensor(math.log(0.04)))) == pytest.approx(12.25)
