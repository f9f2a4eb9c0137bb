"""GETA: joint structured pruning and mixed-precision quantization-aware training (arXiv:2502.16638).

Implements the constrained problem min f(x, d, q_m, t) with exactly K groups of parameters at zero and every bit width
in [b_l, b_u], by the four stages of QASSO: warm-up, projection (PPSG), joint stage (forget rate gamma and step size d
from the paper's rules), cool-down. All of it is in ``geta_core``; this file names its settings.

Differs from the paper: activation ranges come from calibration batches, inputs that are never negative have an unsigned
grid, and the gradient of d is scaled as in LSQ (arXiv:1902.08153) unless ``scale_step_gradient`` is off.

``without``, ``saliency``, ``forgetting`` and ``step_rule`` take one part of the method away; their defaults are the
method as published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

import geta_core as geta
from baselines.schema import Bounds
from baselines.search import Space, declared
from baselines.stages import Stages, without_stage
from geta_core.budget import Budget
from geta_core.config import FOUND
from geta_core.errors import ConfigError
from geta_core.qasso import SaliencyWeights, VariedQASSO

Criterion = Literal["magnitude", "average_magnitude", "cosine", "taylor1", "taylor2"]
CRITERIA: tuple[Criterion, ...] = ("magnitude", "average_magnitude", "cosine", "taylor1", "taylor2")


@dataclass(frozen=True, kw_only=True)
class Geta(Stages):
    """Joint pruning and mixed-precision quantization."""

    PAPER: ClassVar[str] = "GETA, arXiv:2502.16638"
    CONTROLS: ClassVar[str] = "which groups are removed and the bit width of every weight and layer input, together"
    DECIDES: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(("budget_bops", "budget_bytes"), FOUND)
    SEARCH: ClassVar[Space] = declared(__file__, "geta")

    sparsity: float = 0.5
    """Fraction of the prunable groups that are exactly zero at the end, 0 <= sparsity < 1."""
    weight_bits: tuple[int, ...] | None = (4, 8)
    """Range of the weights' bit widths that is promised at the end; null leaves the weights in floating point."""
    activation_bits: tuple[int, ...] | None = None
    """Range of the layer inputs' bit widths that is promised at the end; null leaves the inputs in floating point."""
    initial_bits: int = 16
    """Bit width at which every quantizer starts."""
    per_channel: bool = False
    """One quantizer per output channel of a weight instead of one per tensor."""
    learn_exponent: bool = True
    """Whether the weights' exponent t is learned."""
    learn_activation_exponent: bool = False
    """Whether the inputs' exponent t is learned."""
    heads: Literal["head", "head_dim"] = "head"
    """Remove whole attention heads, or the same index inside every head."""
    pin: tuple[str, ...] = ()
    """Names of modules or parameters that are never pruned."""
    divisible_by: int = 1
    """Kept groups of a family are a multiple of this number."""
    min_kept: int = 1
    """Fewest groups that are kept in each family."""
    prune_normalized: bool = False
    """Also prune channels that enter a LayerNorm or RMSNorm reduction."""
    recompute: bool = False
    """Recompute quantized values in the backward pass: less memory, more time."""
    allowed_bits: tuple[int, ...] | None = None
    """Bit widths that a quantizer may have at the end, such as [2,4,8]; null allows every whole number."""
    budget_bops: Annotated[float, Bounds(0, 1, above=True)] | None = None
    """Relative BOPs that the run ends at, or at most 10 % below; decides sparsity and bit ranges."""
    budget_bytes: Annotated[int, Bounds(1)] | None = None
    """Bytes of stored tensors that the run ends at, or at most 10 % below; decides sparsity and bit ranges."""
    lr_quant: Annotated[float, Bounds(0)] = 1e-4
    """Learning rate of d, q_m and t."""
    scale_step_gradient: bool = True
    """Scale the gradient of d as LSQ does."""
    eta: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.999
    """Constant of the rules for gamma and d."""
    zeta: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.9
    """Constant of the rule for d (xi in the paper)."""
    without: Literal["warmup", "projection", "joint", "cooldown"] | None = None
    """Stage that is left out; the cool-down takes its steps, those of the cool-down go to the warm-up. Without the
    joint stage all groups go in one step."""
    saliency: tuple[Criterion, ...] = CRITERIA
    """Criteria of the saliency, all of equal weight."""
    forgetting: Literal["rule", "uniform"] = "rule"
    """Forget rate in the joint stage: the paper's gamma, or 1 / (steps left in the period)."""
    step_rule: Literal["rule", "gradient", "fixed"] = "rule"
    """Step size d in the joint stage: the paper's rule, its gradient as in the projection stage, or bit widths that are
    fixed when the stage begins."""

    def __post_init__(self) -> None:
        faults = []
        if not self.saliency or len(set(self.saliency)) < len(self.saliency):
            known = ", ".join(CRITERIA)
            faults.append(f"method.saliency must name at least one of {known}, each once, but got {self.saliency!r}")
        try:
            self.compression()
        except ConfigError as error:
            faults.extend(error.faults)
        if faults:
            raise ConfigError(faults)

    def schedule(self, total_steps: int) -> geta.Schedule:
        """Return the schedule of a run, less the stage that is left out."""
        whole = super().schedule(total_steps)
        return whole if self.without is None else without_stage(whole, self.without)

    def compression(self) -> geta.CompressionConfig:
        """Return the engine's configuration, checked."""
        shared = {field.name for field in fields(geta.CompressionConfig)} - {"budget"}
        return geta.CompressionConfig(budget=self.budget(), **{name: getattr(self, name) for name in shared})

    def budget(self) -> Budget | None:
        """Return the one budget that is given, if any.

        Raises:
            ConfigError: when more than one is given.
        """
        if self.budget_bops is not None and self.budget_bytes is not None:
            raise geta.ConfigError(["only one of budget_bops and budget_bytes can be given, but got both"])
        if self.budget_bops is not None:
            return geta.Bops(self.budget_bops)
        return None if self.budget_bytes is None else geta.Bytes(self.budget_bytes)

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups and attach the quantizers."""
        return geta.prepare(model, example_inputs, self.compression(), calibration=list(calibration))

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return QASSO around the given class."""
        weight = 1 / len(CRITERIA)
        return VariedQASSO(
            prepared,
            optimizer_class,
            forgetting=self.forgetting,
            step_rule=self.step_rule,
            saliency=SaliencyWeights(**{name: weight * (name in self.saliency) for name in CRITERIA}),
            schedule=self.schedule(total_steps),
            lr_quant=self.lr_quant,
            scale_step_gradient=self.scale_step_gradient,
            eta=self.eta,
            zeta=self.zeta,
            **keywords,
        )

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Remove the zero groups and fix the bit widths."""
        return geta.finish(prepared)
