"""Formulas against an independent float64 reference, and the properties of the grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geta_core.quantize import bit_width, decompose, levels, quantize, quantize_backward, step_for_bits
from tests.geta_core.quantize import reference
from tests.geta_core.quantize.nets import triple

GRIDS = [True, False]
EXPONENTS = [None, 0.8, 1.0, 1.3]


def numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    if values.numel() > 2:
        values.view(-1)[1] = 0.0
    return values.to(dtype)


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple),
    per_channel=st.booleans(),
    signed=st.booleans(),
    exponent=st.sampled_from(EXPONENTS),
    bits=st.floats(2, 12),
    seed=st.integers(0, 999),
)
def test_forward_and_gradients_equal_the_reference(
    shape: tuple[int, ...], per_channel: bool, signed: bool, exponent: float | None, bits: float, seed: int
) -> None:
    x, g = numbers(seed, shape), numbers(seed + 1, shape)
    form = (shape[0],) + (1,) * (len(shape) - 1) if per_channel and shape else ()
    q_m = numbers(seed + 2, form).abs() + 0.3
    t = None if exponent is None else torch.full_like(q_m, exponent)
    d = step_for_bits(bits, q_m, t, signed)
    arrays = [value.numpy() for value in (x, d, q_m, torch.ones_like(q_m) if t is None else t)]
    expected = reference.gradients(*arrays, signed)
    assert np.allclose(quantize(x, d, q_m, t, signed).numpy(), reference.forward(*arrays, signed), rtol=1e-12, atol=0)
    g_x, g_d, g_q, g_t = quantize_backward(g, x, d, q_m, t, signed)
    assert torch.equal(g_x, g * torch.from_numpy(np.asarray(expected.x)))
    # The sums differ by the order of at most 625 float64 additions; c/d reaches 2^11, and so does its rounding.
    for got, by in ((g_d, expected.d), (g_q, expected.q_m), (g_t, expected.t)):
        if got is None:
            assert t is None
            continue
        want = (g * torch.from_numpy(np.asarray(by))).sum_to_size(got.shape)
        assert got.shape == q_m.shape
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("signed", GRIDS)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_gradients_of_single_elements(signed: bool, exponent: float | None) -> None:
    """With parameters of x's own shape nothing is summed, so that every element is compared by itself."""
    x = numbers(3, (4, 50))
    q_m = torch.full_like(x, 1.7)
    t = None if exponent is None else torch.full_like(x, exponent)
    d = step_for_bits(5, q_m, t, signed)
    expected = reference.gradients(x.numpy(), d.numpy(), q_m.numpy(), np.full(x.shape, exponent or 1.0), signed)
    got = quantize_backward(torch.ones_like(x), x, d, q_m, t, signed)
    for value, name in zip(got, expected._fields, strict=True):
        if value is not None:
            assert np.allclose(value.numpy(), getattr(expected, name), rtol=1e-11, atol=1e-12), name


@pytest.mark.parametrize("signed", GRIDS)
def test_straight_through_is_cut_at_the_range_itself(signed: bool) -> None:
    x = torch.tensor([-2.1, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, 2.1])
    d, q_m = triple(2.0, 4, None, signed)
    g_x = quantize_backward(torch.ones_like(x), x, d, q_m, None, signed)[0]
    assert g_x.tolist() == ([0, 1, 1, 1, 1, 1, 1, 0] if signed else [0, 0, 0, 1, 1, 1, 1, 0])


def test_chain_rule_multiplies_by_the_slope() -> None:
    x = numbers(5, (100,))
    d, q_m, t = triple(1.5, 5, 1.4, True, torch.float64)
    g = torch.ones_like(x)
    plain = quantize_backward(g, x, d, q_m, t, True)[0]
    chained = quantize_backward(g, x, d, q_m, t, True, chain_rule=True)[0]
    assert torch.allclose(chained, plain * 1.4 * x.abs() ** 0.4, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exponent", [None, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("signed", GRIDS)
def test_zero_stays_zero_and_gradients_stay_finite(dtype: torch.dtype, exponent: float | None, signed: bool) -> None:
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 8, 1.0, -1.0, 50.0], dtype=dtype)
    d, q_m, *rest = triple(2.0, 8, exponent, signed)
    t = rest[0] if rest else None
    out = quantize(x, d, q_m, t, signed)
    assert out.dtype == dtype
    assert out[:2].tolist() == [0.0, 0.0]
    for value in quantize_backward(torch.ones_like(x), x, d, q_m, t, signed):
        assert value is None or value.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", GRIDS)
def test_bits_and_step_are_exact_inverses_for_whole_bits(dtype: torch.dtype, signed: bool) -> None:
    ranges = torch.rand(500, dtype=dtype) * 10 ** torch.linspace(-6, 4, 500, dtype=dtype) + 1e-6
    for bits, exponent in itertools.product(range(2, 17), (None, 0.7, 1.0, 1.6)):
        t = None if exponent is None else torch.full_like(ranges, exponent)
        d = step_for_bits(bits, ranges, t, signed)
        assert torch.equal(bit_width(d, ranges, t, signed), torch.full_like(d, bits)), (bits, exponent)
        # The same for single numbers, which take another path through the vectorised functions.
        for i in range(0, 500, 97):
            one = None if t is None else t[i]
            assert bit_width(step_for_bits(bits, ranges[i], one, signed), ranges[i], one, signed).item() == bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", GRIDS)
def test_whole_bits_survive_the_rounding_of_another_device_or_batch(dtype: torch.dtype, signed: bool) -> None:
    q_m = torch.rand(400, dtype=dtype) + 0.1
    t = torch.full_like(q_m, 1.3)
    for bits, ulps in itertools.product(range(2, 17), (-16, -5, -2, 2, 5, 16)):
        d = step_for_bits(bits, q_m, t, signed) * (1 + ulps * torch.finfo(dtype).eps)
        assert torch.equal(bit_width(d, q_m, t, signed), torch.full_like(d, bits)), (bits, ulps)


@given(bits=st.floats(1.5, 16), q_m=st.floats(1e-4, 1e3), t=st.floats(0.4, 2), signed=st.booleans())
def test_bits_of_any_width(bits: float, q_m: float, t: float, signed: bool) -> None:
    q, e = torch.tensor(q_m, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    d = step_for_bits(bits, q, e, signed)
    got = bit_width(d, q, e, signed)
    assert got.item() == pytest.approx(bits, abs=1e-11)
    assert got.item() == pytest.approx(reference.bits(d.numpy(), q.numpy(), e.numpy(), signed), abs=1e-11)


@pytest.mark.parametrize("signed", GRIDS)
@pytest.mark.parametrize("exponent", [None, 1.2])
@pytest.mark.parametrize("bits", [2, 2.6, 4, 7.5, 8, 12])
def test_no_more_levels_than_the_bits_allow(signed: bool, exponent: float | None, bits: float) -> None:
    x = torch.linspace(-3, 3, 50_001)
    d, q_m, *rest = triple(2.0, bits, exponent, signed)
    n = levels(x, d, q_m, rest[0] if rest else None, signed)
    whole = int(np.ceil(bits))
    assert n.unique().numel() <= 2**whole - (1 if signed else 0)
    assert n.max() <= 2 ** (whole - 1 if signed else whole) - 1
    assert n.min() == (-n.max() if signed else 0)
    if bits == whole:
        assert n.max() == 2 ** (whole - 1 if signed else whole) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("signed", GRIDS)
@pytest.mark.parametrize("exponent", [None, 1.2])
def test_levels_times_step_is_the_quantized_value(dtype: torch.dtype, signed: bool, exponent: float | None) -> None:
    x = numbers(7, (3, 400), dtype)
    q_m = torch.tensor([[0.5], [1.0], [3.0]])
    t = None if exponent is None else torch.full_like(q_m, exponent)
    d = step_for_bits(7, q_m, t, signed)
    n = levels(x, d, q_m, t, signed)
    assert torch.equal(n, n.round())
    assert torch.equal((n * d.to(n.dtype)).to(dtype), quantize(x, d, q_m, t, signed))


@pytest.mark.parametrize("signed", GRIDS)
@pytest.mark.parametrize("exponent", [None, 1.0])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantizing_twice_changes_nothing_where_the_exponent_is_one(
    signed: bool, exponent: float | None, bits: int
) -> None:
    d, q_m, *rest = triple(1.9, bits, exponent, signed)
    once = quantize(numbers(9, (2000,), torch.float32), d, q_m, rest[0] if rest else None, signed)
    assert torch.equal(quantize(once, d, q_m, rest[0] if rest else None, signed), once)


@pytest.mark.parametrize("signed", GRIDS)
@pytest.mark.parametrize("exponent", [None, 1.2])
def test_decomposition_adds_up(signed: bool, exponent: float | None) -> None:
    x = numbers(11, (500,))
    d, q_m, *rest = triple(1.5, 4, exponent, signed, torch.float64)
    t = rest[0] if rest else None
    c, r = decompose(x, d, q_m, t, signed)
    inside = x if signed else x.clamp(min=0)
    expected = inside.sign() * inside.abs().clamp(max=1.5) ** (exponent or 1.0)
    assert torch.allclose(c, expected, rtol=1e-12, atol=0)
    assert r.abs().max() <= 0.5
    assert torch.allclose(c + d * r, quantize(x, d, q_m, t, signed), rtol=0, atol=1e-14)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("exponent", [None, 1.1])
def test_bfloat16_input_keeps_the_gradient_of_the_step(bits: int, exponent: float | None) -> None:
    """In bfloat16 arithmetic the residual, and with it this gradient, would be off by up to ten times its size."""
    x, g = numbers(13, (4096,), torch.bfloat16), numbers(14, (4096,), torch.bfloat16)
    d, q_m, *rest = triple(3.0, bits, exponent, True)
    t = rest[0] if rest else None
    low = quantize_backward(g, x, d, q_m, t, True)
    full = quantize_backward(g.float(), x.float(), d, q_m, t, True)
    assert low[0].dtype == torch.bfloat16
    assert low[1].dtype == torch.float32
    assert low[1].item() == pytest.approx(full[1].item(), rel=0.01)
