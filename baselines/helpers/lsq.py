"""Learned step sizes at fixed bit widths (LSQ, Esser et al., arXiv:1902.08153) on the engine's quantizers.

The quantizer has one number to learn, s: d = s and q_m = Q s with Q the largest level, so that the bit width never
moves. By the chain rule its gradient is that of d plus Q times that of q_m, which is LSQ's Eq. 3:

    dv/ds = round(v/s) - v/s  inside the range,  +-Q  beyond it;

it is scaled by 1 / sqrt(N Q) (section 2.2: N elements of a weight, or features of a layer input). Start: s = 2 <|v|> /
sqrt(Q) (section 2.1), of the weights as they are when quantization starts and of the layer inputs in the steps before.

Differs: the signed grid is symmetric (levels -Q .. Q, no -Q - 1); s at most halves in one step, so that it stays
positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geta_core.quantize import QuantSite
from geta_core.quantize.quantizer import Quantizer

MOMENTUM = 0.9
"""Of the running mean of the magnitudes of a layer input."""


class Watcher:
    """Lets values through a quantizer unchanged, and keeps their smallest value and mean magnitude while it trains.

    Args:
        quantizer: the one that it is the observer of.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self.low = torch.zeros_like(quantizer.q_m.detach())
        self.mean = torch.full_like(self.low, -1.0)

    def __call__(self, x: Tensor) -> None:
        """Take a batch into account; no value is read back to the host. In evaluation mode nothing is noted."""
        if not self._quantizer.training or x.numel() == 0:
            return
        with torch.no_grad():
            mean = x.abs().mean().to(self.mean)
            self.low = torch.minimum(self.low, x.min().to(self.low))
            self.mean = torch.where(self.mean < 0, mean, MOMENTUM * self.mean + (1 - MOMENTUM) * mean)


def let_pass(x: Tensor) -> None:
    """Note nothing; the observer of a weight's quantizer that does not work yet."""


class LearnedSteps:
    """The step sizes of a prepared model's quantizers; an optimizer trains them and calls this around its step.

    Args:
        sites: of the prepared model, with exponents fixed at 1.
        weight_bits: of every weight.
        input_bits: of every layer input; None where there are none.
        start: step from which on values are quantized; before it they pass unchanged.
    """

    def __init__(self, sites: Sequence[QuantSite], weight_bits: int, input_bits: int | None, start: int) -> None:
        self._bits = {"weight": weight_bits, "input": input_bits}
        self._start = start
        self._sites = list({id(site.quantizer): site for site in sites}.values())
        self._watchers = {number: Watcher(s.quantizer) for number, s in enumerate(self._sites) if s.kind == "input"}
        self._top: list[float] = []
        self._scale: list[float] = []
        self._before: list[Tensor] = []
        self._wait()
        if start == 0:
            self._begin()

    def parameters(self) -> list[nn.Parameter]:
        """Return what is learned: d of every quantizer."""
        return [site.quantizer.d for site in self._sites]

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Turn the gradients of d and q_m into that of s."""
        if not self._on:
            return
        for site, top, scale in zip(self._sites, self._top, self._scale, strict=True):
            d, q_m = site.quantizer.d, site.quantizer.q_m
            if d.grad is not None and q_m.grad is not None:
                d.grad.add_(q_m.grad, alpha=top).mul_(scale)
            q_m.grad = None
        self._before = [site.quantizer.d.detach().clone() for site in self._sites]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Tie q_m to the new s; with the last step before the start, set s and let the quantizers work."""
        if self._on:
            for site, top, before in zip(self._sites, self._top, self._before, strict=True):
                quantizer = site.quantizer
                quantizer.d.copy_(torch.maximum(quantizer.d, before / 2))
                quantizer.q_m.copy_(quantizer.d * top)
        elif step + 1 == self._start:
            self._begin()

    def _wait(self) -> None:
        """Let values pass unchanged."""
        self._on = False
        for number, site in enumerate(self._sites):
            site.quantizer.observer = self._watchers.get(number, let_pass)

    @torch.no_grad()
    def _begin(self) -> None:
        """Choose the grids from what was seen."""
        for number, site in enumerate(self._sites):
            quantizer, weight = site.quantizer, site.parameter
            if weight is not None:
                top = self._largest(site)
                mean = _mean_magnitude(weight, quantizer.channel_axis)
            else:
                low, mean = _over_ranks(self._watchers[number])
                seen = float(mean) >= 0
                quantizer.signed = float(low) < 0 if seen else quantizer.signed
                top = self._largest(site)
                # Where nothing was seen, the range from calibration stays.
                mean = mean if seen else quantizer.q_m / (2 * top**0.5)
            step = (2 * mean / top**0.5).reshape(quantizer.d.shape).to(quantizer.d)
            quantizer.d.copy_(torch.where(step > 0, step, quantizer.q_m / top))
            quantizer.q_m.copy_(quantizer.d * top)
        self._run()

    def _run(self) -> None:
        """Let the quantizers work; what is constant from now on is computed once."""
        self._on = True
        for site in self._sites:
            site.quantizer.observer = None
        self._top = [self._largest(site) for site in self._sites]
        counts = [site.numel / site.quantizer.d.numel() for site in self._sites]
        self._scale = [(max(n, 1) * top) ** -0.5 for n, top in zip(counts, self._top, strict=True)]

    def _largest(self, site: QuantSite) -> float:
        bits = self._bits[site.kind]
        assert bits is not None
        return float(2 ** (bits - 1) - 1 if site.quantizer.signed else 2**bits - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors that a resumed run needs; steps and grids themselves are part of the model."""
        seen = self._watchers.values()
        return {"on": self._on, "low": [each.low for each in seen], "mean": [each.mean for each in seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state from :meth:`state_dict`; the model's state must have been loaded before."""
        for watcher, low, mean in zip(self._watchers.values(), state["low"], state["mean"], strict=True):
            watcher.low, watcher.mean = low.to(watcher.low.device).clone(), mean.to(watcher.mean.device).clone()
        if state["on"]:
            self._run()
        else:
            self._wait()


def _mean_magnitude(weight: Tensor, axis: int | None) -> Tensor:
    magnitude = weight.detach().abs()
    if axis is None:
        return magnitude.mean()
    return magnitude.mean([dim for dim in range(weight.dim()) if dim != axis], keepdim=True)


def _over_ranks(watcher: Watcher) -> tuple[Tensor, Tensor]:
    """Return the smallest value and the mean magnitude over all processes of the run."""
    low, mean = watcher.low.clone(), watcher.mean.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(mean, dist.ReduceOp.SUM)
        mean /= dist.get_world_size()
    return low, mean
