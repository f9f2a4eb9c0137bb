"""The rules for gamma and d as pure functions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geta_core.qasso.joint import Products, forget_rate, step_size, without_noise
from geta_core.quantize.math import decompose, step_for_bits

ETA, ZETA = 0.999, 0.9


def products(c: Tensor, r: Tensor, g: Tensor) -> Products:
    return Products(*((a * b).sum(-1, dtype=torch.float64) for a, b in ((g, g), (c, c), (c, g), (r, g))))


def scalars(*values: float) -> Products:
    return Products(*(torch.tensor([value], dtype=torch.float64) for value in values))


def test_gamma_in_its_three_cases() -> None:
    c = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [-0.1, 0.2], [0.0, 1.0]], dtype=torch.float64)
    gamma = forget_rate(products(c, c, g), 0.25, ETA)
    # -(1 - eta) ||G|| / (cos ||c||) with ||G|| = 0.1, cos = -0.6, ||c|| = 5; orthogonal counts as not opposed.
    expected = torch.tensor([0.25, 0.001 * 0.1 / (0.6 * 5), 0.0, 0.25], dtype=torch.float64)
    assert torch.allclose(gamma, expected, rtol=1e-12, atol=0)


def test_gamma_never_exceeds_one() -> None:
    assert forget_rate(scalars(1.0, 1.0, -1e-30, 0.0), 0.5, ETA).tolist() == [1.0]


@given(st.integers(0, 2**32 - 1))
def test_the_closed_form_equals_the_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gg, rg = (10 ** (torch.rand(50, generator=generator, dtype=torch.float64) * 8 - 6) for _ in range(2))
    gamma = torch.rand(50, generator=generator, dtype=torch.float64)
    low = 10 ** (torch.rand(50, generator=generator, dtype=torch.float64) * 4 - 3)
    high = low * 100
    found_gamma, found_d = step_size(Products(gg, gg, gg, -rg), gamma, low, high, ZETA * ETA)
    for number in range(50):
        loop_gamma, d = float(gamma[number]), float(ZETA * ETA * gg[number] / (gamma[number] * rg[number]))
        turns = 0
        while d < low[number]:
            loop_gamma, d, turns = loop_gamma * 0.8, d / 0.8, turns + 1
        d = min(d, float(high[number]))
        # Powers and repeated products round differently, by an ulp a turn; random cases miss the exact powers of 1.25.
        assert abs(float(found_gamma[number]) - loop_gamma) <= 1e-14 * (turns + 1) * loop_gamma
        assert abs(float(found_d[number]) - d) <= 1e-14 * (turns + 1) * d


@given(turns=st.integers(1, 60))
def test_on_an_exact_power_both_are_in_range_and_one_turn_apart_at_most(turns: int) -> None:
    low, high = (torch.tensor([value], dtype=torch.float64) for value in (1.0, 2.0))
    start = 0.8**turns
    gamma, d = step_size(scalars(start, 1, 1, -1), torch.ones(1, dtype=torch.float64), low, high, 1.0)
    assert 1.0 <= float(d) <= 2.0
    assert 0.8 ** (turns + 1) * (1 - 1e-12) <= float(gamma) <= 0.8 ** (turns - 1) * (1 + 1e-12)


def test_d_is_the_coarsest_without_a_rule() -> None:
    low, high = torch.full((4,), 0.1, dtype=torch.float64), torch.full((4,), 0.7, dtype=torch.float64)
    rg = torch.tensor([1.0, 0.0, -1.0, -1.0], dtype=torch.float64)
    gamma = torch.tensor([0.5, 0.5, 0.0, 0.5], dtype=torch.float64)
    one = torch.ones(4, dtype=torch.float64)
    shrunk, d = step_size(Products(one * 0.3, one, one, rg), gamma, low, high, ZETA * ETA)
    assert torch.equal(d[:3], high[:3])
    assert torch.equal(shrunk, gamma)
    assert torch.allclose(d[3], torch.tensor(ZETA * ETA * 0.3 / 0.5, dtype=torch.float64), rtol=1e-15, atol=0)


@given(st.floats(0, 1e30), st.floats(0, 1e30), st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), st.floats(1e-8, 1.0))
def test_whatever_the_products_the_results_are_usable(
    gg: float, cc: float, cg: float, rg: float, uniform: float
) -> None:
    low, high = (torch.tensor([value], dtype=torch.float64) for value in (1e-4, 1e-1))
    gamma = forget_rate(scalars(gg, cc, cg, rg), uniform, ETA)
    gamma, d = step_size(scalars(gg, cc, cg, rg), gamma, low, high, ZETA * ETA)
    assert 0 <= float(gamma) <= 1
    assert 1e-4 <= float(d) <= 1e-1


def test_a_movement_below_the_rounding_of_the_values_has_no_direction() -> None:
    eps = torch.full((2,), 1e-7, dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    gg = torch.tensor([3.9e-14, 4.1e-14], dtype=torch.float64)
    found = without_noise(Products(gg, one, -one, -one), eps)
    assert found.gg.tolist() == [0.0, 4.1e-14]
    assert found.cg.tolist() == found.rg.tolist() == [0.0, -1.0]
    assert forget_rate(found, 0.25, ETA)[0] == 0.25


def test_the_doubly_negative_case_descends() -> None:
    """<g, -lr g - gamma (c + d R)> <= -eta (1 - zeta) lr ||g||^2 wherever both cosines are negative."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 32, generator=generator, dtype=torch.float64)
    q_m = x.abs().amax(1, keepdim=True) * 0.9
    bits = torch.randint(3, 12, (4000, 1), generator=generator).double()
    c, r = decompose(x, step_for_bits(bits, q_m, None, True), q_m, None)
    lr = 0.1
    # Half of the gradients are aligned against both parts, which random ones hardly are.
    pull = torch.rand(2, 4000, 1, generator=generator, dtype=torch.float64)
    g = torch.randn(4000, 32, generator=generator, dtype=torch.float64)
    g[::2] = (-c * pull[0] - 3 * r * pull[1] + 0.1 * g)[::2]
    sums = products(c, r, lr * g)
    negative = (sums.cg < 0) & (sums.rg < 0)
    assert int(negative.sum()) > 2000
    low, high = (step_for_bits(bits, q_m, None, True)[:, 0] for bits in (8.0, 4.0))
    # The bound is attained up to rounding where neither the loop nor the upper end of d acts.
    for upper, nearest in ((high, 1.0), (high * 1e9, 0.0999 * (1 + 1e-9))):
        gamma, d = step_size(sums, forget_rate(sums, 0.2, ETA), low, upper, ZETA * ETA)
        slope = ((-sums.gg - gamma * sums.cg - gamma * d * sums.rg) / sums.gg)[negative]
        assert float(slope.max()) <= -ETA * (1 - ZETA) * (1 - 1e-9)
        assert float(slope.max()) >= -nearest


def test_gamma_and_d_are_inversely_proportional() -> None:
    low, high = (torch.tensor([value], dtype=torch.float64) for value in (1e-9, 1e9))
    d = [
        float(step_size(scalars(0.4, 1, 1, -0.3), torch.tensor([gamma], dtype=torch.float64), low, high, 0.9)[1])
        for gamma in (0.1, 0.2)
    ]
    assert abs(d[0] / d[1] - 2) < 1e-12
