"""Prune only: structured pruning while training, nothing quantized.

``criterion=hesso`` is the pruning of OTO (arXiv:2312.09411) by HESSO (arXiv:2409.09085): five criteria per group,
then progressive forgetting of the redundant groups, x <- (L - k - 1) / (L - k) (x - lr g), until exactly K are zero.
``magnitude`` (arXiv:1608.08710), ``taylor`` (arXiv:1906.10771, first order) and ``random`` choose other groups. The
equations stand in ``baselines.helpers.scores`` and ``baselines.helpers.pruner``.

Differs: groups are those of GETA's dependency graph, so that methods are compared and not graphs. The other criteria
share HESSO's schedule, although their papers remove groups at once, so that criteria are compared and not schedules.
The gradient in HESSO's criteria is that of the step's batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import geta_core as geta
from baselines.helpers.pruning import Pruning
from baselines.helpers.sequence import SequenceOptimizer, require_finished
from baselines.search import Space, declared
from baselines.stages import Share, Stages


@dataclass(frozen=True, kw_only=True)
class PruneOnly(Pruning):
    """Structured pruning while training."""

    PAPER: ClassVar[str] = (
        "HESSO, arXiv:2409.09085 (OTO, arXiv:2312.09411); also magnitude, Taylor (arXiv:1906.10771) and random groups"
    )
    CONTROLS: ClassVar[str] = "which groups are removed"
    SEARCH: ClassVar[Space] = declared(__file__, "prune_only")

    warmup: Share = 0.1
    """Ordinary training; a number with a point is a fraction of the run, a whole number is steps."""
    joint: Share = 0.5
    """Groups are forgotten; the rest of the run trains what is left."""

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups."""
        return geta.prepare(model, example_inputs, self.pruning_config())

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with the pruner around it."""
        stages = Stages(warmup=self.warmup, projection=0, joint=self.joint, pruning_periods=self.pruning_periods)
        plan = stages.schedule(total_steps)
        lengths = [("warmup", plan.warmup), ("prune", plan.joint), ("cooldown", plan.cooldown)]
        pruner = self.pruner(prepared, plan)
        return SequenceOptimizer(prepared, optimizer_class, stages=lengths, pruner=pruner, **keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Remove the zero groups."""
        require_finished(prepared)
        return geta.finish(prepared)
