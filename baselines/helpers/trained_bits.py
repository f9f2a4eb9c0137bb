"""What methods that train at fixed bit widths with learned step sizes (LSQ) have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

import geta_core as geta
from baselines.helpers.lsq import LearnedSteps
from baselines.helpers.post_training import Bits
from baselines.helpers.pruning import Pruning
from baselines.schema import Bounds


@dataclass(frozen=True, kw_only=True)
class TrainedBits(Pruning):
    """Groups that go, and bit widths that are trained at."""

    weight_bits: Bits = 8
    """Bit width of every weight."""
    activation_bits: Bits | None = 8
    """Bit width of every layer input; null leaves the inputs in floating point."""
    per_channel: bool = False
    """One step size per output channel of a weight instead of one per tensor."""
    lr_quant: Annotated[float, Bounds(0)] | None = None
    """Learning rate of the step sizes; null: that of the weights, as in the paper."""

    def compression(self) -> geta.CompressionConfig:
        """Return the engine's configuration, checked."""
        inputs = self.activation_bits
        return geta.CompressionConfig(
            sparsity=self.sparsity,
            weight_bits=(self.weight_bits, self.weight_bits),
            activation_bits=None if inputs is None else (inputs, inputs),
            per_channel=self.per_channel,
            learn_exponent=False,
            divisible_by=self.divisible_by,
            min_kept=self.min_kept,
        )

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups and attach the quantizers, which let values pass until their stage."""
        return geta.prepare(model, example_inputs, self.compression(), calibration=list(calibration))

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Remove the zero groups and fix the grids."""
        return geta.finish(prepared)

    def learned_steps(self, prepared: geta.Prepared, start: int) -> LearnedSteps:
        """Return what learns the step sizes from a step on."""
        return LearnedSteps(prepared.sites, self.weight_bits, self.activation_bits, start)
