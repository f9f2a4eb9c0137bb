"""Prune, then quantize after training: the sequential pipeline that joint methods are measured against.

Pruning is HESSO's (arXiv:2409.09085): saliency, then progressive forgetting of the chosen groups while the model
trains, in the same step budget as the other methods. Afterwards weights and layer inputs are quantized without
training, each to one bit width, with the range of least squared error per site (arXiv:2106.08295, section 3.1).

Differs from HESSO: the forget rate follows GETA's rule (arXiv:2502.16638), which also looks at the descent direction;
the groups are GETA's. Weight ranges are per output channel by default, which favours this baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import nn

import geta_core as geta
from baselines.ptq import fit_ranges_
from baselines.qat_only import Bits
from baselines.schema import Bounds
from baselines.stages import Share, Stages


@dataclass(frozen=True, kw_only=True)
class PruneThenPtq:
    """Structured pruning while training, then post-training quantization."""

    sparsity: float = 0.5
    """Fraction of the prunable groups that are exactly zero at the end, 0 <= sparsity < 1."""
    weight_bits: Bits = 8
    """Bit width of every weight."""
    activation_bits: Bits | None = 8
    """Bit width of every layer input; null leaves the inputs in floating point."""
    per_channel: bool = True
    """One range per output channel of a weight instead of one per tensor."""
    divisible_by: int = 1
    """Kept groups of a family are a multiple of this number."""
    min_kept: int = 1
    """Fewest groups that are kept in each family."""
    warmup: Share = 0.1
    """Ordinary training; a number with a point is a fraction of the run, a whole number is steps."""
    joint: Share = 0.5
    """Groups are forgotten; the rest of the run trains what is left."""
    pruning_periods: Annotated[int, Bounds(1)] = 10
    """Portions in which the groups are removed."""

    def __post_init__(self) -> None:
        self.compression()

    def compression(self) -> geta.CompressionConfig:
        """Return the engine's configuration of the pruning, checked."""
        return geta.CompressionConfig(
            sparsity=self.sparsity,
            weight_bits=None,
            activation_bits=None,
            divisible_by=self.divisible_by,
            min_kept=self.min_kept,
        )

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups; nothing is quantized while the model trains."""
        return geta.prepare(model, example_inputs, self.compression())

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return QASSO without a projection stage."""
        stages = Stages(warmup=self.warmup, projection=0, joint=self.joint, pruning_periods=self.pruning_periods)
        return geta.QASSO(prepared, optimizer_class, schedule=stages.schedule(total_steps), **keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Quantize the pruned model and remove the zero groups."""
        inputs = self.activation_bits
        config = replace(
            prepared.config,
            sparsity=0.0,
            weight_bits=(self.weight_bits, self.weight_bits),
            activation_bits=None if inputs is None else (inputs, inputs),
            per_channel=self.per_channel,
            learn_exponent=False,
        )
        quantized = geta.prepare(prepared.model, prepared.inputs, config, calibration=list(calibration))
        fit_ranges_(quantized, calibration, self.weight_bits, inputs)
        return geta.finish(quantized)
