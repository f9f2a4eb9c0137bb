"""DJPQ: differentiable joint pruning and quantization (Wang et al., ECCV 2020, arXiv:2007.10463), and DJPQ-restrict.

Loss L = L_task + gamma sum_g KL_g + beta L_BOPs, all of it by gradient descent in one run.

* Pruning: a gate z_g ~ N(mu_g, sigma_g^2) per group (variational information bottleneck, arXiv:1802.10399), KL_g =
  1/2 log(1 + alpha_g) with alpha_g = mu_g^2 / sigma_g^2; groups with alpha_g below ``alpha_threshold`` are removed.
* Quantization: the quantizer with learnable step d, range q_m and exponent t that GETA took over from this paper, for
  weights and inputs, b = log2(q_m^t / d + 1) + 1.
* BOPs: MACs x b_w x b_a of every layer, the kept share of each side of a layer being the sum of soft indicators
  sigmoid((log alpha - log alpha_threshold) / tau). ``djpq_restrict`` rounds every bit width to a power of two in each
  forward pass, and the gradient passes the rounding straight through.

Differs from the paper, or is not known to agree: the paper's values of gamma, beta and alpha_threshold per network were
not at hand, so that the defaults are ours; L_BOPs is the logarithm of the relative BOPs, so that beta is a price per
e-fold; the indicator is taken of log alpha; d, q_m, t follow Adam in the logarithm and gates follow Adam; the gate of a
channel multiplies parameters instead of activations (the batch norm's scale and shift, where there is one); after
the share ``learn`` of the run groups and whole bits are fixed and the rest is trained on. ``match_bops`` (ours) charges
BOPs only while they exceed a target and fixes groups and bits so that the target is met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers import gates
from baselines.helpers.channels import ChannelGates, gated_slots
from baselines.helpers.joint import GatedOptimizer, JointSettings, Positive, take_off_gates_
from baselines.helpers.targets import nearest
from baselines.schema import Bounds
from baselines.search import Space, declared
from geta_core.errors import ConfigError

POWERS_OF_TWO = (2, 4, 8, 16)
LEAST_SQUARE = 1e-12
"""mu^2 below which the logarithm of alpha is cut."""


class NormalGates(ChannelGates):
    """z ~ N(mu, sigma^2) in training, mu in evaluation."""

    def __init__(self, groups: int, log_variance: float, device: torch.device) -> None:
        super().__init__(groups, device)
        self.mu = nn.Parameter(torch.ones(groups, device=device))
        self.log_variance = nn.Parameter(torch.full((groups,), log_variance, device=device))

    def draw(self) -> Tensor:
        """Return a sample."""
        return gates.normal(self.mu, self.log_variance, torch.randn_like(self.mu))

    def settled(self) -> Tensor:
        """Return the mean."""
        return self.mu

    def log_alpha(self) -> Tensor:
        """Return log(mu^2 / sigma^2)."""
        return self.mu.square().clamp(min=LEAST_SQUARE).log() - self.log_variance


@dataclass(frozen=True, kw_only=True)
class Djpq(JointSettings):
    """Information-bottleneck pruning and learned bit widths under one loss."""

    PAPER: ClassVar[str] = "DJPQ, arXiv:2007.10463 (ECCV 2020)"
    CONTROLS: ClassVar[str] = "groups and mixed bit widths, by the weights of information and BOPs in the loss"
    SEARCH: ClassVar[Space] = declared(__file__, "djpq")

    information: Annotated[float, Bounds(0)] = 1e-3
    """gamma, the weight of the gates' KL divergence."""
    bops_weight: Annotated[float, Bounds(0)] = 0.1
    """beta, the weight of the logarithm of the relative BOPs."""
    initial_bits: Annotated[int, Bounds(2, 16)] = 8
    """Bit width at which every quantizer starts."""
    learn_exponent: bool = True
    """Whether the weights' exponent t is learned."""
    per_channel: bool = False
    """One quantizer per output channel of a weight instead of one per tensor."""
    alpha_threshold: Positive = 1.0
    """Groups whose signal-to-noise ratio mu^2 / sigma^2 is below it are removed."""
    temperature: Positive = 1.0
    """tau of the soft indicator of a kept group."""
    log_variance: float = -9.0
    """log sigma^2 of every gate at the start (that of the released code of arXiv:1802.10399)."""

    def compression(self) -> geta.CompressionConfig:
        """Return the engine's configuration, checked."""
        return replace(super().compression(), learn_exponent=self.learn_exponent, per_channel=self.per_channel)

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups, attach quantizers, and put a gate on every group."""
        prepared = geta.prepare(model, example_inputs, self.compression(), calibration=list(calibration))
        for site in prepared.sites:
            site.quantizer.set_bits_(float(self.initial_bits))
        device = next(model.parameters()).device
        NormalGates(prepared.num_prunable, self.log_variance, device).attach_(model, gated_slots(prepared))
        return prepared

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with the gradients of information and BOPs."""
        return DjpqOptimizer(self, prepared, optimizer_class, total_steps, keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Take the gates off, remove the zero groups and fix the bit widths."""
        take_off_gates_(prepared)
        return geta.finish(prepared)


@dataclass(frozen=True, kw_only=True)
class DjpqRestrict(Djpq):
    """DJPQ with bit widths that are powers of two in every forward pass; the bounds must be such, too."""

    PAPER: ClassVar[str] = "DJPQ-restrict, arXiv:2007.10463 (ECCV 2020)"
    CONTROLS: ClassVar[str] = "as djpq, with bit widths of 2, 4, 8 or 16"

    def __post_init__(self) -> None:
        super().__post_init__()
        named = {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits or ()}
        wrong = {name: bounds for name, bounds in named.items() if not set(bounds) <= set(POWERS_OF_TWO)}
        if wrong:
            raise ConfigError([f"{name} must be two of {POWERS_OF_TWO}, but got {b}" for name, b in wrong.items()])

    def widths(self) -> tuple[int, ...] | None:
        """Return 2, 4, 8 and 16."""
        return POWERS_OF_TWO


class DjpqOptimizer(GatedOptimizer):
    """The optimizer of :class:`Djpq`."""

    settings: Djpq
    gates: NormalGates

    def penalty(self) -> Tensor:
        """Return gamma sum KL + beta log BOPs (above the target, where there is one)."""
        settings = self.settings
        keep = torch.sigmoid((self.gates.log_alpha() - math.log(settings.alpha_threshold)) / settings.temperature)
        entries, allowed = self.learned_bits(), settings.widths()
        if allowed is not None:
            entries = entries + (nearest(entries.detach(), allowed) - entries.detach())
        excess = self.cost.relative_bops(keep, self.grids.site_bits(entries)).log()
        if self.target is not None:
            excess = (excess - math.log(self.target)).clamp(min=0)
        information = gates.information(self.gates.mu, self.gates.log_variance).sum()
        return settings.information * information + settings.bops_weight * excess

    def score(self) -> Tensor:
        """Return log alpha."""
        return self.gates.log_alpha()

    def redundant(self) -> Tensor:
        """Return the groups whose alpha is below the threshold."""
        return self.score().detach() < math.log(self.settings.alpha_threshold)

    def learned_bits(self) -> Tensor:
        """Return the bit widths of theta, differentiable."""
        return self.grids.entry_bits(self.grids.theta)

    def bits_in_training(self) -> Tensor | None:
        """Return powers of two for the restricted method."""
        allowed = self.settings.widths()
        return None if allowed is None else nearest(self.learned_bits().detach(), allowed)
