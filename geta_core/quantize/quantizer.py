"""The quantizer as a module: a parametrization of a weight, or the ``input_quantizer`` of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from geta_core.quantize import math, recompute
from geta_core.quantize.ahead import Parts, Ready
from geta_core.quantize.op import apply_fake_quantize, fake_quantize

Self = TypeVar("Self", bound="Quantizer")


class RangeObserver:
    """Running minimum and maximum of what passes through a quantizer while ranges are being calibrated."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.elements = 0

    def __call__(self, x: Tensor) -> None:
        """Take the tensor into account; no value is read back to the host."""
        if x.numel() == 0:
            return
        low, high = torch.aminmax(x.detach())
        low, high = low.to(math.working_dtype(x.dtype)), high.to(math.working_dtype(x.dtype))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.elements += x.numel()


class Quantizer(nn.Module):
    """x -> x^Q with learnable step size d, range q_m and, where asked for, exponent t.

    d, q_m and t must stay positive; whoever updates them keeps them so. They stay in float32 or wider under ``half()``
    and ``bfloat16()``: a step size of 16 bits is subnormal in half precision.

    Args:
        q_m: range, > 0; 0-dim, or with one entry per channel in a shape such as [C, 1, 1, 1].
        bits: bit width at the start.
        signed: whether the grid has negative levels.
        learn_exponent: make t a parameter that starts at 1; otherwise t is None and stands for 1.
        channel_axis: axis of the tensor that the entries of q_m belong to, None for one triple per tensor.
        recompute: keep the recipe of x^Q instead of x^Q for the layer's backward pass.
        chain_rule: multiply the gradient of x by t |x|^(t-1) instead of passing it straight through.
    """

    t: nn.Parameter | None

    def __init__(
        self,
        q_m: Tensor,
        bits: float,
        *,
        signed: bool = True,
        learn_exponent: bool = True,
        channel_axis: int | None = None,
        recompute: bool = False,
        chain_rule: bool = False,
    ) -> None:
        super().__init__()
        q_m = q_m.detach().clone().to(math.working_dtype(q_m.dtype))
        self.signed = signed
        self.channel_axis = channel_axis
        self.recompute = recompute
        self.chain_rule = chain_rule
        self.observer: Callable[[Tensor], None] | None = None
        self.ready = Ready()
        self.d = nn.Parameter(math.step_for_bits(bits, q_m, None, signed))
        self.q_m = nn.Parameter(q_m)
        self.register_parameter("t", nn.Parameter(torch.ones_like(q_m)) if learn_exponent else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x^Q, shaped and typed like x; while an observer is set, return x itself."""
        if self.observer is not None:
            self.observer(x)
            return x
        if torch.compiler.is_exporting():
            exported: Tensor = fake_quantize(x, self.d, self.q_m, self.t, self.signed, self.chain_rule)
            return exported
        compiling = torch.compiler.is_compiling()
        if not compiling and (made := self.ready.made) is not None and made.serves(self.parts(x)):
            return made.out
        out = apply_fake_quantize(x, self.d, self.q_m, self.t, self.signed, self.chain_rule)
        if self.recompute and not compiling and out.requires_grad:
            recompute.note(out, recompute.Recipe.of(x, self.d, self.q_m, self.t, self.signed))
        return out

    def parts(self, x: Tensor) -> Parts:
        """Return x and the present d, q_m and t."""
        return x, self.d, self.q_m, self.t

    def levels(self, x: Tensor) -> Tensor:
        """Return the whole numbers n in the working dtype, for which n * d is x^Q bit for bit."""
        with torch.no_grad():
            return math.levels(x, self.d, self.q_m, self.t, self.signed)

    def bits(self) -> Tensor:
        """Return the bit width, shaped like d, without a graph."""
        with torch.no_grad():
            return math.bit_width(self.d, self.q_m, self.t, self.signed)

    @torch.no_grad()
    def set_bits_(self: Self, bits: Tensor | float) -> Self:
        """Set d so that ``bits()`` returns ``bits``, a number or a tensor that broadcasts to the shape of d."""
        self.d.copy_(math.step_for_bits(bits, self.q_m, self.t, self.signed))
        return self

    @torch.no_grad()
    def set_range_(self: Self, q_m: Tensor | float) -> Self:
        """Set q_m and move d along, so that the bit width stays what it was."""
        bits = self.bits()
        self.q_m.copy_(torch.as_tensor(q_m, dtype=self.q_m.dtype, device=self.q_m.device))
        return self.set_bits_(bits)

    def get_extra_state(self) -> Tensor:
        """Return whether the grid is signed, as a tensor, for the state_dict."""
        return torch.tensor(self.signed)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the kind of grid from a state_dict."""
        self.signed = bool(state)

    def extra_repr(self) -> str:
        """Describe the grid and the shape of its parameters."""
        axis = "" if self.channel_axis is None else f", channel_axis={self.channel_axis}"
        return f"signed={self.signed}, learn_exponent={self.t is not None}{axis}"

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_wide(value: Tensor) -> Tensor:
            changed = fn(value)
            wide = math.working_dtype(changed.dtype) if changed.is_floating_point() else value.dtype
            return changed if changed.dtype == wide else value.to(device=changed.device, dtype=wide)

        super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call]
        return self
