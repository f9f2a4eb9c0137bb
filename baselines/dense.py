"""Dense: the float model, trained by the plain optimizer. The yardstick of every comparison; there is no paper.

Nothing is pruned or quantized; the result is saved, measured and loaded like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import geta_core as geta
from baselines.search import Space, declared


@dataclass(frozen=True, kw_only=True)
class Dense:
    """No compression."""

    PAPER: ClassVar[str] = "no paper: the yardstick"
    CONTROLS: ClassVar[str] = "nothing: the float model, trained as it is"
    SEARCH: ClassVar[Space] = declared(__file__, "dense")

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Capture the model; it stays as it is."""
        config = geta.CompressionConfig(sparsity=0.0, weight_bits=None, activation_bits=None)
        return geta.prepare(model, example_inputs, config)

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the plain optimizer."""
        return optimizer_class(prepared.model.parameters(), **keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Measure and wrap the model."""
        return geta.finish(prepared)
