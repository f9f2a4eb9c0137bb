"""All quantizers' d, q_m and t as three flat vectors: read, scale, clamp and write back in a few batched operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geta_core.quantize.math import power
from geta_core.quantize.quantizer import Quantizer
from geta_core.quantize.sites import QuantSite

Range = tuple[float, float]

LEAST_SHARE = 0.1
"""q_m and t keep at least this share of their value in one step: an absurd gradient never makes them negative."""
LEAST_VALUE = {"q_m": 1e-8, "t": 1e-2}
"""And never fall below these."""
LARGEST_EXPONENT = 60.0
"""t is cut where |log2(q_m^t)| would exceed this, so that q_m^t and q_m^t / levels stay normal numbers."""


@dataclass(frozen=True)
class Span:
    """Where a weight's quantizer lies in the vectors."""

    start: int
    count: int
    channel_axis: int | None
    learns_exponent: bool


class Vectors(NamedTuple):
    """Values of all quantizers, each of shape [entries]; t is None where no quantizer learns it."""

    d: Tensor
    q_m: Tensor
    t: Tensor | None

    def top(self) -> Tensor:
        """Return q_m^t, the highest value before rounding."""
        return power(self.q_m, self.t)


class QuantVectors:
    """Batched access to the quantizers of ``sites``, each of them once, however many sites share it.

    An entry is one (d, q_m, t): one per quantizer, or one per channel.

    Args:
        sites: quantization sites.
        ranges: bit range of each kind of site; None means that the bits are never bounded below the initial ones.
        initial: bit width at which the quantizers started.
        allowed: whole bit widths that may be fixed, rising; None allows every one.
    """

    def __init__(
        self,
        sites: Sequence[QuantSite],
        ranges: Mapping[str, Range | None],
        initial: float,
        allowed: Sequence[int] | None = None,
    ) -> None:
        self.initial = initial
        self.allowed = allowed
        owners = {id(site.quantizer): site for site in reversed(sites)}
        self._sites = list(owners.values())[::-1]
        self.quantizers: list[Quantizer] = [site.quantizer for site in self._sites]
        self.learns_exponent = any(quantizer.t is not None for quantizer in self.quantizers)
        self.sizes = [quantizer.d.numel() for quantizer in self.quantizers]
        self.ranges = {kind: bounds or (2, initial) for kind, bounds in ranges.items()}
        self._bound_cache: dict[str, tuple[tuple[float, ...], Tensor]] = {}
        self._signature: object = None
        self.spans: dict[int, Span] = {}
        starts = {id(q): sum(self.sizes[:number]) for number, q in enumerate(self.quantizers)}
        for site in sites:
            quantizer, parameter = site.quantizer, site.parameter
            if parameter is not None:
                self.spans[id(parameter)] = Span(
                    starts[id(quantizer)], quantizer.d.numel(), quantizer.channel_axis, quantizer.t is not None
                )

    def __len__(self) -> int:
        return sum(self.sizes)

    def parameters(self) -> list[nn.Parameter]:
        """Return d, q_m and (where learned) t of every quantizer."""
        return [p for q in self.quantizers for p in (q.d, q.q_m, q.t) if p is not None]

    def refresh(self) -> None:
        """Take notice if a quantizer's memory or kind of grid has changed since the last step."""
        signature = [(p.data_ptr(), p.device) for p in self.parameters()], [q.signed for q in self.quantizers]
        if signature != self._signature and self.quantizers:
            self._rebuild()
            self._signature = signature

    def _rebuild(self) -> None:
        quantizers = self.quantizers
        first = quantizers[0].d
        self._bound_cache.clear()
        self._d = [q.d.detach().view(-1) for q in quantizers]
        self._q_m = [q.q_m.detach().view(-1) for q in quantizers]
        self._t = [
            torch.ones_like(q.q_m.detach()).view(-1) if q.t is None else q.t.detach().view(-1) for q in quantizers
        ]
        self._learned = [number for number, q in enumerate(quantizers) if q.t is not None]
        # The combinations of kind and sign that occur, each with a 0/1 mask: bounds are made without host copies.
        kinds = [(site.kind, q.signed) for site, q in zip(self._sites, quantizers, strict=True)]
        self._masks = {
            key: _spread([float(kind == key) for kind in kinds], self.sizes, first) for key in dict.fromkeys(kinds)
        }
        self.signed = _spread([float(q.signed) for q in quantizers], self.sizes, first)
        counts = [max(1, site.numel) / size for site, size in zip(self._sites, self.sizes, strict=True)]
        self._counts = _spread(counts, self.sizes, first)

    def read(self) -> Vectors:
        """Return copies of the present values."""
        return Vectors(torch.cat(self._d), torch.cat(self._q_m), torch.cat(self._t) if self.learns_exponent else None)

    def read_positive(self, before: Vectors) -> Vectors:
        """Return the present values with q_m and t kept positive, and write those back.

        Args:
            before: values before the inner optimizer's step.
        """
        now = self.read()
        q_m = torch.maximum(now.q_m, before.q_m * LEAST_SHARE).clamp(min=LEAST_VALUE["q_m"])
        torch._foreach_copy_(self._q_m, list(torch.split(q_m, self.sizes)))
        t = now.t
        if t is not None and before.t is not None:
            t = torch.maximum(t, before.t * LEAST_SHARE).clamp(min=LEAST_VALUE["t"])
            t = torch.minimum(t, LARGEST_EXPONENT / q_m.log2().abs())
            pieces = torch.split(t, self.sizes)
            torch._foreach_copy_([self._t[n] for n in self._learned], [pieces[n] for n in self._learned])
        return Vectors(now.d, q_m, t)

    def write(self, values: Vectors) -> None:
        """Write step sizes, ranges and learned exponents, each of shape [entries], back to the quantizers."""
        torch._foreach_copy_(self._q_m, list(torch.split(values.q_m, self.sizes)))
        if values.t is not None:
            pieces = torch.split(values.t, self.sizes)
            torch._foreach_copy_([self._t[n] for n in self._learned], [pieces[n] for n in self._learned])
        self.write_steps(values.d)

    def write_steps(self, d: Tensor) -> None:
        """Write the step sizes, shape [entries], back to the quantizers."""
        torch._foreach_copy_(self._d, list(torch.split(d, self.sizes)))

    @contextmanager
    def scaled_gradients(self, vectors: Vectors) -> Iterator[None]:
        """Scale the gradients of d by 1 / sqrt(elements x levels) inside the context; .grad itself is left as it was.

        Source: LSQ, arXiv:1902.08153, section 2.2. Without it d turns negative within a few steps.
        """
        levels = vectors.top() / vectors.d
        pieces = torch.split(torch.rsqrt(self._counts * levels), self.sizes)
        found = [
            (q.d, q.d.grad, piece) for q, piece in zip(self.quantizers, pieces, strict=True) if q.d.grad is not None
        ]
        if found:
            scales = [piece.view_as(grad) for _, grad, piece in found]
            scaled = torch._foreach_mul([grad for _, grad, _ in found], scales)
            for (d, _, _), grad in zip(found, scaled, strict=True):
                d.grad = grad
        try:
            yield
        finally:
            for d, grad, _ in found:
                d.grad = grad

    def levels_of(self, role: str, bits: dict[str, float]) -> Tensor:
        """Return q_m^t / d at the given bits of each kind, shape [entries].

        Args:
            role: name under which the result is kept until other bits are asked for.
            bits: bit width (fractions allowed) of each kind of site.
        """
        key = tuple(bits[kind] for kind, _ in self._masks)
        cached = self._bound_cache.get(role)
        if cached is None or cached[0] != key:
            parts = [mask * (2.0 ** (bits[kind] - signed) - 1) for (kind, signed), mask in self._masks.items()]
            cached = key, torch.stack(parts).sum(0)
            self._bound_cache[role] = cached
        return cached[1]

    def bounds(self, low: dict[str, float], high: dict[str, float], top: Tensor) -> tuple[Tensor, Tensor]:
        """Return (d_min, d_max), at which the bit widths are ``high`` and ``low``, for the given q_m^t."""
        return top / self.levels_of("high", high), top / self.levels_of("low", low)

    def whole_bits(self, vectors: Vectors) -> Tensor:
        """Return the bit widths rounded to allowed whole numbers in their range, long, shape [entries]."""
        bits = torch.log2(vectors.top() / vectors.d + 1) + self.signed
        low, high = (self._per_kind({kind: bounds[end] for kind, bounds in self.ranges.items()}) for end in (0, 1))
        if self.allowed is not None:
            return nearest_allowed(bits, low, high, self.allowed)
        return torch.minimum(torch.maximum(bits.round(), low), high).long()

    def _per_kind(self, values: dict[str, float]) -> Tensor:
        return torch.stack([mask * values[kind] for (kind, _), mask in self._masks.items()]).sum(0)

    def steps_of(self, bits: Tensor, top: Tensor) -> Tensor:
        """Return the step sizes that have exactly ``bits`` (long, shape [entries]) bits."""
        levels = torch.bitwise_left_shift(torch.ones_like(bits), bits - self.signed.long()) - 1
        return top / levels.to(top.dtype)


def nearest_allowed(bits: Tensor, low: Tensor, high: Tensor, allowed: Sequence[int]) -> Tensor:
    """Return the nearest of the allowed widths within [low, high], long; halves of the ratio take the wider one.

    Each range holds one of them. Every width is made on the device: nothing is copied from the host.
    """
    best, gap = torch.zeros_like(bits), torch.full_like(bits, float("inf"))
    for width in sorted(allowed, reverse=True):
        distance = (bits.log2() - math.log2(width)).abs()
        closer = (distance < gap) & (low <= width) & (high >= width)
        best, gap = torch.where(closer, float(width), best), torch.where(closer, distance, gap)
    return best.long()


def _spread(values: Iterable[float], sizes: Sequence[int], like: Tensor) -> Tensor:
    repeated = [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
    return torch.tensor(repeated, dtype=like.dtype, device=like.device)
