"""Methods that compress a trained dense model: they train it first, or take the weights that the run starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import geta_core as geta
from baselines.helpers.sequence import SequenceOptimizer


@dataclass(frozen=True, kw_only=True)
class DenseStart:
    """Dense training, or none."""

    train: bool = True
    """Train the dense model for the run's steps first; false compresses model.weights as they are."""

    def steps(self, total_steps: int) -> int:
        """Return how many optimizer steps are taken."""
        return total_steps if self.train else 0

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the plain optimizer; it counts its steps."""
        return SequenceOptimizer(prepared, optimizer_class, stages=[("train", total_steps)], **keywords)
