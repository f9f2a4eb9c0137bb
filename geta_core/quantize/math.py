"""The quantizer's formulas as pure functions (arXiv:2502.16638, section on the parameterised quantizer).

With step size d > 0, range q_m > 0 and exponent t > 0 (``t=None`` means fixed at 1), all of them 0-dim tensors or, per
channel, tensors such as [C, 1, 1, 1] that broadcast against x::

    c(x) = min(|x|, q_m)^t,   n(x) = sgn(x) round(c(x) / d),   x^Q = d n(x)

The signed grid has b = log2(q_m^t/d + 1) + 1 bits and 2^b - 1 levels. The unsigned grid, for values that are never
negative, replaces |x| by max(x, 0), has b = log2(q_m^t/d + 1) bits and the levels 0 .. 2^b - 1. Where b is not whole,
the used levels are those of the next whole number of bits at most.

Every function computes in float32 or wider, whatever x.dtype is: in bfloat16 the rounding residual, and with it the
gradient of d, would be noise. Nothing here synchronises with the host or changes an argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN_2 = math.log(2.0)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that the arithmetic uses for values of ``dtype``: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def power_floor(dtype: torch.dtype) -> float:
    """Return the smallest magnitude that is raised to the power t.

    Smaller ones are raised to this value first, so that neither a logarithm of zero nor a subnormal number arises (both
    take slow paths on CPUs); the sign factor 0 restores the exact zero.
    """
    return math.sqrt(torch.finfo(dtype).tiny)


def power(value: Tensor, t: Tensor | None) -> Tensor:
    """Return value^t for value > 0, through the base-2 logarithm, which is the fastest pair of functions."""
    return value if t is None else torch.exp2(torch.log2(value) * t)


def _cast(dtype: torch.dtype, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(value.to(dtype) for value in values)


def bit_width(d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    """Return the bit width b of the grid, shaped like d.

    A ratio q_m^t/d that is a whole number up to rounding (relative 32 eps; powers differ by a few eps between devices,
    and between one number and a batch of them) is taken as that number, so that a d made by :func:`step_for_bits` gives
    back exactly the whole number of bits it was made for.
    """
    dtype = working_dtype(torch.promote_types(d.dtype, q_m.dtype))
    ratio = power(q_m.to(dtype), None if t is None else t.to(dtype)) / d.to(dtype)
    whole = ratio.round()
    ratio = torch.where((ratio - whole).abs() <= 32 * torch.finfo(dtype).eps * whole, whole, ratio)
    bits = torch.log2(ratio + 1)
    return bits + 1 if signed else bits


def step_for_bits(bits: Tensor | float, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    """Return the step size d for which the grid has ``bits`` bits (more than 1 signed, more than 0 unsigned)."""
    dtype = working_dtype(q_m.dtype)
    exponent = torch.as_tensor(bits, dtype=dtype, device=q_m.device)
    top = torch.exp2(exponent - 1 if signed else exponent) - 1
    return (power(q_m.to(dtype), None if t is None else t.to(dtype)) / top).to(q_m.dtype)


def _clipped(x: Tensor, q_m: Tensor, t: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the clipped magnitude, at least the power floor, and the sign factor (0 where x contributes nothing)."""
    magnitude = (x.abs() if signed else x).clamp(min=power_floor(x.dtype)).minimum(q_m)
    sign = x.sign() if signed else (x > 0).to(x.dtype)
    return magnitude, sign


def _clamped(x: Tensor, q_m: Tensor, signed: bool) -> Tensor:
    return x.minimum(q_m).maximum(-q_m) if signed else x.clamp(min=0.0).minimum(q_m)


def levels(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    """Return the whole numbers n(x) in the working dtype, shaped like x; ``n * d`` is x^Q bit for bit."""
    dtype = working_dtype(x.dtype)
    x, d, q_m = _cast(dtype, x, d, q_m)
    if t is None:
        return torch.round(_clamped(x, q_m, signed) / d)
    magnitude, sign = _clipped(x, q_m, t, signed)
    return torch.round(power(magnitude, t.to(dtype)) / d) * sign


def quantize(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    """Return x^Q, shaped and typed like x; zero stays exactly zero."""
    value = levels(x, d, q_m, t, signed)
    return (value * d.to(value.dtype)).to(x.dtype)


def decompose(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool = True) -> tuple[Tensor, Tensor]:
    """Return (c, r) in the working dtype with x^Q = c + d r.

    c = sgn(x) min(|x|, q_m)^t is the clip part and r = sgn(x) (round(|c|/d) - |c|/d) the residual part.
    """
    dtype = working_dtype(x.dtype)
    x, d, q_m = _cast(dtype, x, d, q_m)
    if t is None:
        clip = _clamped(x, q_m, signed)
    else:
        magnitude, sign = _clipped(x, q_m, t, signed)
        clip = power(magnitude, t.to(dtype)) * sign
    scaled = clip / d
    return clip, torch.round(scaled) - scaled


def _summed(value: Tensor, like: Tensor) -> Tensor:
    return value.sum_to_size(like.shape).to(like.dtype)


def quantize_backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, d, q_m and t, given g, that of x^Q.

    x: straight through where |x| <= q_m (unsigned: 0 <= x <= q_m), 0 elsewhere; ``chain_rule`` multiplies by
    t |x|^(t-1). d: sgn(x) (round(c/d) - c/d). q_m: sgn(x) t q_m^(t-1) where x is cut off. t: sgn(x) c ln min(|x|, q_m).
    The last three are summed to the shapes of their parameters.
    """
    dtype = working_dtype(x.dtype)
    wide, step, top, grad = _cast(dtype, x, d, q_m, g)
    clamped = _clamped(wide, top, signed)
    g_x = grad * (clamped == wide).to(dtype)
    cut = grad - g_x if signed else grad * (wide > top).to(dtype)
    if t is None:
        scaled = clamped / step
        g_d = (torch.round(scaled) - scaled) * grad
        return g_x.to(g.dtype), _summed(g_d, d), _summed(cut * wide.sign(), q_m), None
    exponent = t.to(dtype)
    magnitude, sign = _clipped(wide, top, exponent, signed)
    log = torch.log2(magnitude)
    clip = torch.exp2(log * exponent)
    scaled = clip / step
    signed_grad = grad * sign
    g_d = (torch.round(scaled) - scaled) * signed_grad
    g_q = _summed(cut * sign, q_m) * (exponent * power(top, exponent - 1)).to(q_m.dtype)
    g_t = _summed(clip * log * signed_grad * LN_2, t)
    if chain_rule:
        g_x = g_x * (exponent * torch.exp2(log * (exponent - 1)))
    return g_x.to(g.dtype), _summed(g_d, d), g_q, g_t
