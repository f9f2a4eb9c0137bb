"""Prune, then train quantized: the float model is pruned, recovers, and is then trained at fixed bit widths.

Pruning is that of ``prune_only`` (HESSO, arXiv:2409.09085); quantization-aware training is LSQ (Esser et al.,
arXiv:1902.08153, Eq. 1 to 3 and section 2.2: learned step sizes, their gradient scaled by 1 / sqrt(N Q)), started
from the pruned model's weights and inputs. The equations stand in ``baselines.helpers.lsq``. All stages share the
run's budget.

Differs: one learning rate course over all stages instead of one per stage; the signed grid is symmetric; first and last
layer have the same bit widths as the others, where LSQ keeps 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import geta_core as geta
from baselines.helpers.lengths import lengths, require_steps
from baselines.helpers.sequence import SequenceOptimizer
from baselines.helpers.trained_bits import TrainedBits
from baselines.search import Space, declared
from baselines.stages import Share, Stages


@dataclass(frozen=True, kw_only=True)
class PruneThenQat(TrainedBits):
    """Structured pruning in float, then quantization-aware training."""

    PAPER: ClassVar[str] = "HESSO, arXiv:2409.09085, then LSQ, arXiv:1902.08153"
    CONTROLS: ClassVar[str] = (
        "which groups are removed, then step sizes at one bit width for weights and one for inputs"
    )
    SEARCH: ClassVar[Space] = declared(__file__, "prune_then_qat")

    warmup: Share = 0.1
    """Ordinary training; a number with a point is a fraction of the run, a whole number is steps."""
    joint: Share = 0.3
    """Groups are forgotten."""
    recovery: Share = 0.1
    """What is left trains in floating point; the rest of the run trains it quantized."""

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with the pruner and the learned step sizes around it."""
        shares = {"warmup": self.warmup, "joint": self.joint, "recovery": self.recovery}
        stages = lengths(total_steps, "quantize", **shares)
        require_steps(stages, "quantize")
        plan = Stages(
            warmup=stages["warmup"], projection=0, joint=stages["joint"], pruning_periods=self.pruning_periods
        ).schedule(total_steps)
        return SequenceOptimizer(
            prepared,
            optimizer_class,
            stages=list(stages.items()),
            pruner=self.pruner(prepared, plan),
            steps=self.learned_steps(prepared, total_steps - stages["quantize"]),
            lr_quant=self.lr_quant,
            **keywords,
        )
