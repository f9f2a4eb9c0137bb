"""Blocked and compiled code against the plain formulas."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geta_core.errors import ConfigError, GetaError
from geta_core.quantize import (
    blocks,
    get_kernel,
    kernels,
    quantize,
    quantize_backward,
    set_kernel,
    small,
    step_for_bits,
)
from tests.geta_core.quantize.nets import block_size, kernel, triple

KINDS = [(signed, t) for signed in (True, False) for t in (None, 1.2)]


def assert_same_gradients(
    got: kernels.Gradients, want: kernels.Gradients, terms: kernels.Gradients, exact: bool = True
) -> None:
    """Compare two sets of gradients; ``terms`` holds the sums of the absolute values of what was summed.

    A float32 sum of n terms in any order is off by at most n eps times that sum; with the 8 or more running sums of the
    vectorised loops and blocks of at most 2^17 elements that is far below 1e-5 of it for random signs.
    """
    assert torch.equal(got[0], want[0]) if exact else torch.allclose(got[0], want[0], rtol=1e-6)
    for a, b, bound in zip(got[1:], want[1:], terms[1:], strict=True):
        if b is None:
            assert a is None
            continue
        assert a is not None and bound is not None
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a.double() - b.double()).abs().item() <= 1e-5 * bound.abs().item() + 1e-30


def absolute_terms(g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> kernels.Gradients:
    wide = [value.double() for value in (x, d, q_m)]
    shaped = [value.expand_as(x) for value in wide]
    elementwise = quantize_backward(g.double(), *shaped, None if t is None else t.double().expand_as(x), signed)
    return tuple(None if value is None else value.abs().sum() for value in elementwise)  # type: ignore[return-value]


@settings(max_examples=100)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    block=st.sampled_from([8, 64, 100, 1 << 17]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
)
def test_blocks_equal_plain(
    shape: tuple[int, ...], block: int, kind: tuple[bool, float | None], dtype: torch.dtype, order: object, seed: int
) -> None:
    signed, exponent = kind
    torch.manual_seed(seed)
    axes = list(range(len(shape)))
    order.shuffle(axes)  # type: ignore[attr-defined]
    x, g = (torch.randn(shape).to(dtype).permute(axes) for _ in range(2))
    x = (x * 10).round() / 10  # so that some lie exactly on the ends of the range
    d, q_m, *rest = triple(1.3, 5, exponent, signed)
    t = rest[0] if rest else None
    with block_size(block), kernel("eager"):
        out = kernels.forward(x, d, q_m, t, signed)
        got = kernels.backward(g, x, d, q_m, t, signed)
    assert torch.equal(out, quantize(x, d, q_m, t, signed))
    assert out.stride() == torch.empty_like(x).stride()
    want = quantize_backward(g, x, d, q_m, t, signed)
    assert_same_gradients(got, want, absolute_terms(g, x, d, q_m, t, signed))


@settings(max_examples=100)
@given(
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    dense=st.booleans(),
    seed=st.integers(0, 99),
)
def test_few_calls_equal_plain(
    shape: tuple[int, ...], kind: tuple[bool, float | None], dtype: torch.dtype, dense: bool, seed: int
) -> None:
    signed, exponent = kind
    torch.manual_seed(seed)
    x = (torch.randn(shape, dtype=dtype) * 10).round() / 10  # some lie exactly on the ends of the range, and on 0
    g = torch.randn(shape, dtype=dtype) if dense else torch.randn((), dtype=dtype).expand(shape)
    d, q_m, *rest = (value.to(dtype) for value in triple(1.3, 5, exponent, signed))
    t = rest[0] if rest else None
    with kernel("eager"):
        assert kernels.is_small(x)
        assert small.fits(x, d, q_m)
        out = kernels.forward(x, d, q_m, t, signed)
        got = kernels.backward(g, x, d, q_m, t, signed)
    assert torch.equal(out, quantize(x, d, q_m, t, signed))
    want = quantize_backward(g, x, d, q_m, t, signed)
    assert_same_gradients(got, want, absolute_terms(g, x, d, q_m, t, signed))


@settings(max_examples=80)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    block=st.sampled_from([1, 8, 30, 1 << 17]),
    kind=st.sampled_from(KINDS),
    axis=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
)
def test_blocks_equal_plain_per_channel(
    shape: tuple[int, ...],
    block: int,
    kind: tuple[bool, float | None],
    axis: int,
    dtype: torch.dtype,
    order: object,
    seed: int,
) -> None:
    signed, exponent = kind
    torch.manual_seed(seed)
    axes = list(range(len(shape)))
    order.shuffle(axes)  # type: ignore[attr-defined]
    x, g = (torch.randn(shape).to(dtype).permute(axes) for _ in range(2))
    form = [n if i == axis % len(shape) else 1 for i, n in enumerate(x.shape)]
    q_m = torch.rand(form) + 0.5
    t = None if exponent is None else torch.full_like(q_m, exponent)
    d = step_for_bits(5, q_m, t, signed)
    with block_size(block), kernel("eager"):
        out = kernels.forward(x, d, q_m, t, signed)
        got = kernels.backward(g, x, d, q_m, t, signed)
    assert torch.equal(out, quantize(x, d, q_m, t, signed))
    want = quantize_backward(g, x, d, q_m, t, signed)
    assert torch.equal(got[0], want[0])
    for a, b in zip(got[1:], want[1:], strict=True):
        assert (a is None) == (b is None)
        # Sums of at most 216 float32 terms of size 4 in another order.
        assert a is None or (a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize(("signed", "exponent"), KINDS)
@pytest.mark.parametrize("size", [blocks.LEAST, blocks.BLOCK + 12_345])
def test_blocks_of_the_real_size_equal_plain(signed: bool, exponent: float | None, size: int) -> None:
    x, g = torch.randn(size), torch.randn(size)
    d, q_m, *rest = triple(2.0, 8, exponent, signed)
    t = rest[0] if rest else None
    assert kernels._worth_blocks(x, d)
    assert torch.equal(kernels.forward(x, d, q_m, t, signed), quantize(x, d, q_m, t, signed))
    got, want = kernels.backward(g, x, d, q_m, t, signed), quantize_backward(g, x, d, q_m, t, signed)
    assert_same_gradients(got, want, absolute_terms(g, x, d, q_m, t, signed))


@pytest.mark.parametrize("layout", ["expanded", "gaps", "channels_last", "transposed gradient"])
def test_every_memory_layout(layout: str) -> None:
    x = torch.randn(4, 6, 5, 7)
    g = torch.randn(4, 6, 5, 7)
    if layout == "expanded":
        x = torch.randn(4, 1, 5, 7).expand(4, 6, 5, 7)
        g = torch.tensor(1.0).expand(4, 6, 5, 7)
    elif layout == "gaps":
        x = torch.randn(4, 6, 5, 14)[..., ::2]
    elif layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    else:
        g = torch.randn(7, 5, 6, 4).permute(3, 2, 1, 0)
    d, q_m = triple(1.0, 4, None, True)
    with block_size(64):
        out = kernels.forward(x, d, q_m, None, True)
        got = kernels.backward(g, x, d, q_m, None, True)
    assert torch.equal(out, quantize(x, d, q_m, None, True))
    assert_same_gradients(got, quantize_backward(g, x, d, q_m, None, True), absolute_terms(g, x, d, q_m, None, True))


def test_arguments_are_not_changed() -> None:
    x, g = torch.randn(300), torch.randn(300)
    values = [x, g, *triple(1.0, 4, 1.2, True)]
    before = [value.clone() for value in values]
    with block_size(64):
        kernels.forward(x, *values[2:], True)
        kernels.backward(g, x, *values[2:], True)
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))


@pytest.mark.needs("compiler")
@pytest.mark.parametrize(("signed", "exponent"), [(True, 1.2), (False, None)])
def test_compiled_equals_plain(signed: bool, exponent: float | None) -> None:
    d, q_m, *rest = triple(1.3, 5, exponent, signed)
    t = rest[0] if rest else None
    with kernel("compiled"):
        for x in (
            torch.randn(700),
            torch.randn(3, 4, 5, 6),
            torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
        ):
            g = torch.randn_like(x)
            out = kernels.forward(nn.Parameter(x), d, q_m, t, signed)
            # exp2 and log2 of another vector library differ in the last bit, which moves a value across a rounding
            # threshold only when it lies within 1e-6 of one.
            assert torch.allclose(out, quantize(x, d, q_m, t, signed), rtol=1e-6, atol=0)
            assert out.stride() == x.stride()
            got, want = kernels.backward(g, x, d, q_m, t, signed), quantize_backward(g, x, d, q_m, t, signed)
            assert_same_gradients(got, want, absolute_terms(g, x, d, q_m, t, signed), exact=False)


@pytest.mark.needs("compiler")
def test_compiled_body_is_not_specialised_for_rank_or_requires_grad() -> None:
    torch._dynamo.reset()
    d, q_m = triple(1.3, 5, None, True)
    with kernel("compiled"), torch.no_grad():
        kernels.forward(torch.randn(7, 9), d, q_m, None, True)
        torch._dynamo.utils.counters.clear()
        for x in (torch.randn(11), nn.Parameter(torch.randn(2, 3, 4)), torch.randn(2, 3, 4, 5, 6)):
            kernels.forward(x, nn.Parameter(d), q_m, None, True)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_unknown_kernel_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'compiled'"):
        set_kernel("compile")  # type: ignore[arg-type]
    assert get_kernel() == "auto"


def test_compiled_without_compiler_is_refused_instead_of_running_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiler_available", lambda device: False)
    with pytest.raises(GetaError, match=r"needs .* choose 'eager'"):
        set_kernel("compiled")
    assert get_kernel() == "auto"
    monkeypatch.setattr(kernels, "_chosen", "compiled")
    d, q_m = triple(1.3, 5, None, True)
    with pytest.raises(GetaError, match="cpu"):
        kernels.forward(torch.randn(5), d, q_m, None, True)


def test_auto_needs_no_compiler_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_compiled", lambda *_: pytest.fail("auto must not compile on the CPU"))
    d, q_m = triple(1.3, 5, None, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.forward(torch.randn(blocks.LEAST), d, q_m, None, True)
