"""Bayesian Bits (van Baalen et al., NeurIPS 2020, arXiv:2005.07093): bit widths as residuals behind gates, 0 = pruned.

Quantizer (Eq. 1 to 6): with the range [alpha, beta] (alpha = -beta, or 0 where values are never negative), x clipped to
it, s_2 = (beta - alpha) / 3 and s_2b = s_b / (2^b + 1)::

    x_2 = s_2 round(x / s_2),   e_b = s_b round((x - x_{b/2}) / s_b),   x_b = x_{b/2} + e_b
    x_q = z_2 (x_2 + z_4 (e_4 + z_8 (e_8 + z_16 e_16)))

x_b is exactly the uniform quantization to b bits. The gates z_4, z_8, z_16 of every weight and input, and a gate z_2
per prunable group, are hard concrete (``baselines.helpers.gates``). Loss (section 2.3 and 4, regularizer "bop")::

    L = L_task + mu sum_layers MACs / max MACs sum_b b prod_{j <= b} q(z_j > 0)

over the quantizers of weights and inputs; in evaluation a gate is open where P(z = 0) < 0.34. All gates start at 6.

Differs from the paper: there is no z_32, since the artifact stores at most 16 bits; z_2 sits on the groups of the
dependency graph and multiplies the parameters that make a channel zero; MACs are those expected under the gates of
both sides of a layer; beta is learned in the logarithm; after the share ``learn`` of the run the gates are fixed and
the rest is trained on (the paper's second phase on ImageNet). ``match_bops`` (ours) charges only while the BOPs of the
gates that are open exceed a target, and fixes groups and bits so that the target is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers import gates
from baselines.helpers.channels import ChannelGates, gated_slots
from baselines.helpers.joint import GatedOptimizer, JointSettings, take_off_gates_
from baselines.helpers.swapping import swap_
from baselines.schema import Bounds
from baselines.search import Space, declared
from geta_core.errors import ConfigError
from geta_core.quantize import Quantizer

WIDTHS = (2, 4, 8, 16)
MARGIN = 1e-6
"""Relative distance from the ends of the range to which values are clipped, so that the ends round inwards."""


def step_sizes(beta: Tensor, signed: bool, widths: Sequence[int] = WIDTHS) -> list[Tensor]:
    """Return s_2, s_4, ... for the range [-beta, beta], or [0, beta] where not signed."""
    steps = [beta * ((2 if signed else 1) / (2 ** widths[0] - 1))]
    for width in widths[:-1]:
        steps.append(steps[-1] / (2**width + 1))
    return steps


def residuals(x: Tensor, beta: Tensor, signed: bool, widths: Sequence[int] = WIDTHS) -> list[Tensor]:
    """Return x_2, e_4, e_8, ...: their sum up to e_b is x quantized to b bits. Gradients pass the rounding straight.

    Args:
        x: values.
        beta: upper end of the range, > 0; broadcasts against x.
        signed: whether the lower end is -beta instead of 0.
        widths: bit widths, each twice the one before.
    """
    top = beta * (1 - MARGIN)
    clipped = torch.minimum(torch.maximum(x, -top if signed else torch.zeros_like(top)), top)
    parts: list[Tensor] = []
    rest = clipped
    for step in step_sizes(beta, signed, widths):
        scaled = rest / step
        part = (scaled + (scaled.round() - scaled).detach()) * step
        parts.append(part)
        rest = rest - part
    return parts


def gated_sum(parts: Sequence[Tensor], z: Tensor) -> Tensor:
    """Return x_2 + z_4 (e_4 + z_8 (e_8 + ...)); ``z`` holds one gate for each part but the first."""
    total = parts[-1]
    for number in range(len(parts) - 1, 0, -1):
        total = parts[number - 1] + z[number - 1] * total
    return total


class BitGates(ChannelGates):
    """Hard concrete gates of groups (z_2) and of the residuals of every site, drawn together."""

    def __init__(self, groups: int, sites: int, logit: float, threshold: float, device: torch.device) -> None:
        super().__init__(groups, device)
        self.threshold = threshold
        self.group_logit = nn.Parameter(torch.full((groups,), logit, device=device))
        self.bit_logit = nn.Parameter(torch.full((sites, len(WIDTHS) - 1), logit, device=device))
        self._bits_now: Tensor | None = None

    def draw(self) -> Tensor:
        """Return a sample of the groups' gates."""
        return gates.hard_concrete(self.group_logit, torch.rand_like(self.group_logit))

    def settled(self) -> Tensor:
        """Return the groups' gates of evaluation."""
        return gates.is_open(self.group_logit, self.threshold).float()

    def begin(self) -> None:
        """Draw both kinds of gates."""
        super().begin()
        self._bits_now = None if self.fixed else self.residual_gates()

    def end(self) -> None:
        """Let go of what was drawn."""
        super().end()
        self._bits_now = None

    def residual_gates(self) -> Tensor:
        """Return z_4, z_8, z_16 of now, [sites, 3]."""
        if self._bits_now is not None:
            return self._bits_now
        if self.training and torch.is_grad_enabled():
            return gates.hard_concrete(self.bit_logit, torch.rand_like(self.bit_logit))
        return gates.is_open(self.bit_logit, self.threshold).float()

    def width_index(self) -> Tensor:
        """Return how many residuals of each site are open in evaluation, counted up to the first closed, [sites]."""
        return gates.is_open(self.bit_logit, self.threshold).long().cumprod(1).sum(1)


class ResidualQuantizer(nn.Module):
    """Stands in for a quantizer while bit widths are learned; its range is the quantizer's q_m, taken as beta."""

    def __init__(self, inner: Quantizer, held: BitGates, number: int) -> None:
        super().__init__()
        self.inner = inner
        self.number = number
        self._held = (held,)  # in a tuple: the gates are a submodule of the model, not of each quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated sum of residuals, or, once the widths are fixed, what the quantizer returns."""
        (held,) = self._held
        if held.fixed:
            fixed: Tensor = self.inner(x)
            return fixed
        parts = residuals(x.to(self.inner.q_m.dtype), self.inner.q_m, self.inner.signed)
        return gated_sum(parts, held.residual_gates()[self.number]).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class BayesianBits(JointSettings):
    """Gates on residual quantizers and on groups, priced by bits and MACs."""

    PAPER: ClassVar[str] = "Bayesian Bits, arXiv:2005.07093 (NeurIPS 2020)"
    CONTROLS: ClassVar[str] = "groups and bit widths of 2, 4, 8 or 16, by the price mu of MACs times bits"
    SEARCH: ClassVar[Space] = declared(__file__, "bayesian_bits")

    price: Annotated[float, Bounds(0)] = 0.01
    """mu, the weight of the regularizer; the paper has 0.01 and 0.1 on CIFAR-10."""
    logit: float = 6.0
    """Logit of every gate at the start."""
    lr_gates: Annotated[float, Bounds(0, above=True)] = 1e-3
    """Learning rate of the gates (Adam)."""
    threshold: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.34
    """A gate is open in evaluation where its probability of being zero is below it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = (*self.weight_bits, *(self.activation_bits or ()))
        if not set(bounds) <= set(WIDTHS):
            raise ConfigError([f"weight_bits and activation_bits must be two of {WIDTHS} each, but got {bounds}"])

    def widths(self) -> tuple[int, ...] | None:
        """Return 2, 4, 8 and 16."""
        return WIDTHS

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups, and put gates on them and residual quantizers in the place of quantizers."""
        prepared = geta.prepare(model, example_inputs, self.compression(), calibration=list(calibration))
        device = next(model.parameters()).device
        numbers: dict[int, int] = {}
        for site in prepared.sites:
            numbers.setdefault(id(site.quantizer), len(numbers))
        held = BitGates(prepared.num_prunable, len(numbers), self.logit, self.threshold, device)
        made: dict[int, ResidualQuantizer] = {}
        for site in prepared.sites:
            number = numbers[id(site.quantizer)]
            swap_(site, site.quantizer, made.setdefault(number, ResidualQuantizer(site.quantizer, held, number)))
        held.attach_(model, gated_slots(prepared), home=made[0])
        return prepared

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with the gradients of the regularizer."""
        return BitsOptimizer(self, prepared, optimizer_class, total_steps, keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Take the gates off, put the quantizers back, remove the zero groups and fix the bit widths."""
        take_off_gates_(prepared)
        for site in prepared.sites:
            for module in [each for each in prepared.model.modules() if isinstance(each, ResidualQuantizer)]:
                if module.inner is site.quantizer:
                    swap_(site, module, site.quantizer)
        return geta.finish(prepared)


class BitsOptimizer(GatedOptimizer):
    """The optimizer of :class:`BayesianBits`."""

    settings: BayesianBits
    gates: BitGates

    def penalty(self) -> Tensor:
        """Return mu times the regularizer; nothing while a target is met."""
        keep = gates.probability_open(self.gates.group_logit)
        chance = gates.probability_open(self.gates.bit_logit).cumprod(1)
        prices = torch.tensor(WIDTHS[1:], dtype=chance.dtype, device=chance.device)
        charge = WIDTHS[0] + (chance * prices).sum(1)
        macs = self.cost.layer_macs(keep) / self.cost.macs.max()
        total = (macs * self.cost.layer_sums(self.grids.site_bits(charge))).sum()
        if self.target is not None:
            total = total * (self._open_bops() > self.target)
        return self.settings.price * total

    def _open_bops(self) -> Tensor:
        with torch.no_grad():
            bits = self.grids.site_bits(self.bits_in_training().to(self.gates.bit_logit.dtype))
            return self.cost.relative_bops(self.gates.settled(), bits)

    def score(self) -> Tensor:
        """Return the groups' logits."""
        return self.gates.group_logit

    def redundant(self) -> Tensor:
        """Return the groups whose gate is closed in evaluation."""
        return ~gates.is_open(self.gates.group_logit.detach(), self.gates.threshold)

    def learned_bits(self) -> Tensor:
        """Return 2 to the power of the expected number of doublings, [entries]."""
        doublings = gates.probability_open(self.gates.bit_logit.detach()).cumprod(1).sum(1)
        return self.grids.within_ranges(WIDTHS[0] * torch.exp2(doublings))

    def bits_in_training(self) -> Tensor:
        """Return the widths of the gates that are open in evaluation, within their bounds."""
        widths = torch.tensor(WIDTHS, device=self.gates.bit_logit.device)[self.gates.width_index()]
        return self.grids.within_ranges(widths)

    def at_fix(self, bits: Tensor) -> None:
        """Go over from beta to q_m, the largest level: (2^b - 2) / (2^b - 1) beta on a signed grid."""
        levels = torch.exp2(bits.float())
        shrink = torch.where(self.grids.signed > 0, (levels - 2) / (levels - 1), torch.ones_like(levels))
        with torch.no_grad():
            self.grids.theta[1] += shrink.log()
