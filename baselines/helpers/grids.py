"""All quantizers' step sizes, ranges and exponents, learned by Adam in the logarithm.

d, q_m and t are positive numbers of very different sizes (at 16 bits d is q_m / 32767), so that one learning rate suits
all of them only relative to their values: theta = (log d, log q_m, log t). The gradient of the loss by theta is
the quantizer's own gradient times the value; a method's regularizer adds its own by autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.qasso.quant_update import QuantVectors, Vectors

LEAST, MOST = -18.0, 18.0
"""Bounds of log q_m; log t stays within +-1."""


class Grids:
    """The quantizers of a prepared model as three vectors, and Adam on their logarithms.

    Args:
        prepared: with at least one quantizer.
        ranges: bounds of the bit widths of each kind of site while they are learned.
        lr: learning rate at the start.

    Attributes:
        sizes: entries of each quantizer, side by side in every vector.
        average: float [sites, entries], from the entries to the mean of each site.
    """

    def __init__(self, prepared: geta.Prepared, ranges: Mapping[str, tuple[int, int]], lr: float) -> None:
        self.sites, self.ranges = prepared.sites, dict(ranges)
        self._vectors = QuantVectors(self.sites, ranges, prepared.config.initial_bits)
        self._vectors.refresh()
        self.sizes = self._vectors.sizes
        quantizers = self._vectors.quantizers
        self.theta = nn.Parameter(self._logarithms(self._vectors.read()))
        self.adam = torch.optim.Adam([self.theta], lr=lr)
        learned = [torch.full((q.d.numel(),), float(q.t is not None)) for q in quantizers]
        self._learned = torch.cat(learned).to(self.theta)
        starts = [sum(self.sizes[:number]) for number in range(len(self.sizes))]
        place = {id(q): number for number, q in enumerate(quantizers)}
        owner = [number for number, size in enumerate(self.sizes) for _ in range(size)]
        self._owner = torch.tensor(owner, device=self.theta.device)
        self._bounds = [torch.tensor(ends, device=self.theta.device) for ends in self._spread_ranges()]
        self.average = torch.zeros(len(self.sites), len(self._vectors), device=self.theta.device)
        for row, site in zip(self.average, self.sites, strict=True):
            number = place[id(site.quantizer)]
            row[starts[number] : starts[number] + self.sizes[number]] = 1 / self.sizes[number]

    def _spread_ranges(self) -> tuple[list[int], list[int]]:
        """Lowest and highest bits of every entry."""
        each = [c for c, size in zip(self.choices(None), self.sizes, strict=True) for _ in range(size)]
        return [c[0] for c in each], [c[-1] for c in each]

    def choices(self, widths: Sequence[int] | None) -> list[tuple[int, ...]]:
        """Return the widths that each quantizer may have: those of ``widths``, or all whole numbers, in its range."""
        kinds = {id(site.quantizer): site.kind for site in reversed(self.sites)}
        bounds = [self.ranges[kinds[id(q)]] for q in self._vectors.quantizers]
        every = [range(low, high + 1) for low, high in bounds]
        return [tuple(w for w in each if widths is None or w in widths) for each in every]

    @property
    def signed(self) -> Tensor:
        """1 where the grid is signed, else 0, [entries]."""
        return self._vectors.signed

    def within_ranges(self, bits: Tensor) -> Tensor:
        """Return bits cut to the range of each quantizer; one number per quantizer becomes one per entry."""
        low, high = self._bounds
        return bits.index_select(0, self._owner).clamp(low, high)

    def entries_of(self, quantizers: Sequence[nn.Module]) -> list[int]:
        """Return the place of each of these quantizers, which have one entry each, in the vectors."""
        starts = dict(zip(map(id, self._vectors.quantizers), itertools.accumulate([0, *self.sizes]), strict=False))
        return [starts[id(quantizer)] for quantizer in quantizers]

    def constant(self, widths: Mapping[str, int]) -> Tensor:
        """Return one whole bit width for each kind of site, long [entries]."""
        kinds = {id(site.quantizer): site.kind for site in reversed(self.sites)}
        each = [widths[kinds[id(q)]] for q in self._vectors.quantizers]
        return torch.tensor(each, device=self.theta.device).index_select(0, self._owner)

    @staticmethod
    def _logarithms(values: Vectors) -> Tensor:
        t = torch.ones_like(values.d) if values.t is None else values.t
        return torch.stack([values.d, values.q_m, t]).log()

    def entry_bits(self, theta: Tensor) -> Tensor:
        """Return the bit width of every entry, differentiable in ``theta``."""
        log_d, log_q, log_t = theta
        return torch.log2(torch.exp(log_q * log_t.exp() - log_d) + 1) + self._vectors.signed

    def site_bits(self, entries: Tensor) -> Tensor:
        """Return the mean over each site's entries, [sites]."""
        return self.average @ entries

    def gradient(self) -> Tensor:
        """Return the gradient of the loss by theta, from the quantizers' own .grad; zero where there is none."""
        quantizers, now = self._vectors.quantizers, self._vectors.read()
        values = (now.d, now.q_m, torch.ones_like(now.d) if now.t is None else now.t)
        parameters = ([(getattr(q, name), q.d) for q in quantizers] for name in ("d", "q_m", "t"))
        return torch.stack([_flat(pairs) * value for pairs, value in zip(parameters, values, strict=True)])

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: float) -> None:
        """Move theta by Adam, and keep bits, ranges and exponents in their bounds; nothing is written yet."""
        # Exponents that are not learned stay 1, also where a regularizer would move them.
        self.theta.grad = torch.stack([gradient[0], gradient[1], gradient[2] * self._learned])
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        self.theta[1].clamp_(LEAST, MOST)
        self.theta[2].clamp_(-1.0, 1.0)
        values = self.values()
        low, high = ({kind: float(bounds[end]) for kind, bounds in self.ranges.items()} for end in (0, 1))
        d_min, d_max = self._vectors.bounds(low, high, values.top())
        self.theta[0].copy_(torch.minimum(torch.maximum(values.d, d_min), d_max).log())

    def values(self) -> Vectors:
        """Return the values that theta stands for."""
        d, q_m, t = self.theta.detach().exp()
        return Vectors(d, q_m, t if self._vectors.learns_exponent else None)

    def tied(self, gradient: Tensor) -> Tensor:
        """Return the gradient of log q_m and log t where the bit width is fixed, so that d moves with them."""
        t = self.theta.detach()[2].exp()
        g_d, g_q, g_t = gradient
        return torch.stack([torch.zeros_like(g_d), g_q + g_d * t, g_t + g_d * t * self.theta.detach()[1]])

    def write(self, bits: Tensor | None = None) -> None:
        """Write theta's values into the quantizers.

        Args:
            bits: whole bit widths, long [entries], that the step sizes are then set for.
        """
        values = self.values()
        if bits is not None:
            values = values._replace(d=self._vectors.steps_of(bits, values.top()))
        self._vectors.write(values)

    def by_site(self, bits: Tensor) -> dict[str, Tensor]:
        """Return whole bits by the name of the site, shaped like d."""
        quantizers = self._vectors.quantizers
        pieces = dict(zip(map(id, quantizers), torch.split(bits, self.sizes), strict=True))
        return {site.name: pieces[id(site.quantizer)].view_as(site.quantizer.d).clone() for site in self.sites}

    def state(self) -> dict[str, Any]:
        """Return theta and Adam's moments."""
        return {"theta": self.theta.detach().clone(), "adam": self.adam.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self._vectors.refresh()
        with torch.no_grad():
            self.theta.copy_(state["theta"])
        self.adam.load_state_dict(state["adam"])


def _flat(pairs: list[tuple[nn.Parameter | None, nn.Parameter]]) -> Tensor:
    """Gradients side by side; zeros shaped like the second where the first is none or has none."""
    found = [like.detach().new_zeros(like.shape) if p is None or p.grad is None else p.grad for p, like in pairs]
    return torch.cat([each.reshape(-1) for each in found])
