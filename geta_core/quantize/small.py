"""The two formulas on the CPU, eagerly, for one small tensor with one triple: in as few calls as there can be.

Quantizing a small weight takes longer to call than to compute, and more so inside a training step, whose convolutions
have driven the interpreter's data out of the caches. So nothing is cast, no view is taken that is not needed, and
temporaries are overwritten; comparisons go into float buffers, since into booleans they are several times slower. Every
element sees the operations of :mod:`geta_core.quantize.math` in the same order, so that forward values are the same
bits; only sums are added up in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geta_core.quantize.math import LN_2, power_floor

FLOORS = {dtype: power_floor(dtype) for dtype in (torch.float32, torch.float64)}


def fits(x: Tensor, d: Tensor, q_m: Tensor) -> bool:
    """Tell whether the functions below take these: float32 or float64 throughout, x contiguous, d and q_m 0-dim."""
    return x.dtype in FLOORS and x.dtype is d.dtype is q_m.dtype and d.dim() == 0 and x.is_contiguous()


def forward(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    """Return x^Q."""
    if t is None:
        out = x.minimum(q_m).maximum(-q_m) if signed else x.clamp(min=0.0).minimum(q_m)
        return out.div_(d).round_().mul_(d)
    out = x.abs().clamp_(min=FLOORS[x.dtype]) if signed else x.clamp(min=FLOORS[x.dtype])
    torch.minimum(out, q_m, out=out).log2_().mul_(t).exp2_().div_(d).round_()
    return out.mul_(x.sign() if signed else torch.gt(x, 0.0, out=torch.empty_like(x))).mul_(d)


def backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, d, q_m and t; g has the type of x, and is dense."""
    shape, g, x = x.shape, g.reshape(-1), x.view(-1)
    buffer = torch.empty_like(x)
    if t is None:
        clamped = x.minimum(q_m).maximum(-q_m) if signed else x.clamp(min=0.0).minimum(q_m)
        g_x = torch.eq(clamped, x, out=torch.empty_like(x)).mul_(g)
        cut = torch.sub(g, g_x, out=buffer) if signed else torch.gt(x, q_m, out=buffer).mul_(g)
        g_q = cut.dot(clamped.sign())
        scaled = clamped.div_(d)
        return g_x.view(shape), torch.round(scaled, out=buffer).sub_(scaled).dot(g), g_q, None
    magnitude = x.abs() if signed else x.clamp(min=0.0)
    g_x = torch.le(magnitude, q_m, out=torch.empty_like(x)).mul_(g)
    if signed:
        signed_g = x.sign().mul_(g)
    else:
        g_x.mul_(torch.ge(x, 0.0, out=buffer))
        signed_g = torch.gt(x, 0.0, out=torch.empty_like(x)).mul_(g)
    factor = (t - 1).mul_(q_m.log2()).exp2_().mul_(t)
    g_q = torch.gt(magnitude, q_m, out=buffer).dot(signed_g).mul_(factor)
    log = torch.minimum(magnitude.clamp_(min=FLOORS[x.dtype]), q_m, out=magnitude).log2_()
    clip = torch.mul(log, t, out=buffer).exp2_()
    g_t = log.mul_(clip).dot(signed_g).mul_(LN_2)
    scaled = clip.div_(d)
    return g_x.view(shape), torch.round(scaled, out=log).sub_(scaled).dot(signed_g), g_q, g_t
