"""Train quantized, then prune: the order opposite to ``prune_then_qat``, with the same parts.

The model trains at fixed bit widths by LSQ (arXiv:1902.08153, Eq. 1 to 3) after a short float warm-up; then groups of
the quantized model are removed as in HESSO (arXiv:2409.09085) while it goes on training quantized. No paper proposes
this very pipeline; it is the other sequential order that joint methods are compared with (arXiv:2502.16638, section
1).

Differs from its parts as ``prune_then_qat`` does.
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
class QuantizeThenPrune(TrainedBits):
    """Quantization-aware training, then structured pruning of the quantized model."""

    PAPER: ClassVar[str] = "LSQ, arXiv:1902.08153, then HESSO, arXiv:2409.09085"
    CONTROLS: ClassVar[str] = (
        "step sizes at one bit width for weights and one for inputs, then which groups are removed"
    )
    SEARCH: ClassVar[Space] = declared(__file__, "quantize_then_prune")

    warmup: Share = 0.1
    """Ordinary training; a number with a point is a fraction of the run, a whole number is steps."""
    quantize: Share = 0.3
    """Training at the bit widths, nothing pruned."""
    joint: Share = 0.3
    """Groups are forgotten; the rest of the run trains what is left, quantized."""

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with the learned step sizes and the pruner around it."""
        shares = {"warmup": self.warmup, "quantize": self.quantize, "joint": self.joint}
        stages = lengths(total_steps, "cooldown", **shares)
        require_steps(stages, "quantize")
        plan = Stages(
            warmup=stages["warmup"] + stages["quantize"],
            projection=0,
            joint=stages["joint"],
            pruning_periods=self.pruning_periods,
        ).schedule(total_steps)
        return SequenceOptimizer(
            prepared,
            optimizer_class,
            stages=list(stages.items()),
            pruner=self.pruner(prepared, plan),
            steps=self.learned_steps(prepared, stages["warmup"]),
            lr_quant=self.lr_quant,
            **keywords,
        )
