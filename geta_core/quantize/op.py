"""The quantizer as one custom operator (what torch.export records) and as an autograd.Function (what training runs).

Both call the same two functions of :mod:`geta_core.quantize.kernels`, so that they cannot drift apart. The operator is
opaque to torch.compile; the Function is traced through and fuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geta_core.quantize import kernels


@torch.library.custom_op("geta::fake_quantize", mutates_args=())
def fake_quantize(
    x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool = False
) -> Tensor:
    """Return x^Q; see :mod:`geta_core.quantize.math`. ``chain_rule`` concerns the gradient of x alone."""
    return kernels.forward(x, d, q_m, t, signed)


@torch.library.custom_op("geta::fake_quantize_backward", mutates_args=())
def fake_quantize_backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool
) -> list[Tensor]:
    """Return the gradients of x, d, q_m and, where t is given, of t."""
    return [value for value in kernels.backward(g, x, d, q_m, t, signed, chain_rule) if value is not None]


@fake_quantize.register_fake
def _(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool = False) -> Tensor:
    return torch.empty_like(x)


@fake_quantize_backward.register_fake
def _(g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool) -> list[Tensor]:
    like = (torch.empty_like(x, dtype=g.dtype), *(torch.empty_like(value) for value in (d, q_m)))
    return [*like] if t is None else [*like, torch.empty_like(t)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, d, q_m, t, ctx.signed, ctx.chain_rule = inputs
    ctx.has_t = t is not None
    ctx.save_for_backward(x, d, q_m, *((t,) if ctx.has_t else ()))


def _op_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, d, q_m, *rest = ctx.saved_tensors
    grads = fake_quantize_backward(g, x, d, q_m, rest[0] if ctx.has_t else None, ctx.signed, ctx.chain_rule)
    return (*grads, None, None) if ctx.has_t else (*grads, None, None, None)


fake_quantize.register_autograd(_op_backward, setup_context=_save)


class FakeQuantize(torch.autograd.Function):
    """``FakeQuantize.apply(x, d, q_m, t, signed, chain_rule)``; only x and the parameters are kept for the backward."""

    # A separate setup_context would make torch read and bind this signature anew at every call, which takes longer
    # than quantizing a small weight; it is needed for torch.func's transforms only.
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool
    ) -> Tensor:
        """Return x^Q, and keep the inputs for the backward pass."""
        out = kernels.forward(x, d, q_m, t, signed)
        _save(ctx, (x, d, q_m, t, signed, chain_rule), out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, d, q_m and t."""
        x, d, q_m, *rest = ctx.saved_tensors
        t = rest[0] if ctx.has_t else None
        return (*kernels.backward(g, x, d, q_m, t, ctx.signed, ctx.chain_rule), None, None)


apply_fake_quantize: Callable[..., Tensor] = FakeQuantize.apply
