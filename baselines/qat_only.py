"""QAT only: quantization-aware training at one fixed bit width, nothing pruned.

The learned step size is that of LSQ (Esser et al., arXiv:1902.08153, Eq. 1 to 5: gradient of d through the rounding,
scaled by 1 / sqrt(elements x levels)); the quantizer is GETA's (d, q_m, t of arXiv:2502.16638), so that a comparison
with GETA isolates the pruning and the choice of bits.

Differs from LSQ: the range q_m is learned as well, and the width falls from ``initial_bits`` to the fixed width during
the projection stage instead of starting there, which GETA does too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

import geta_core as geta
from baselines.matching import Matching
from baselines.schema import Bounds
from baselines.search import Space, declared
from baselines.stages import Share, Stages

Bits = Annotated[int, Bounds(2, 16)]


@dataclass(frozen=True, kw_only=True)
class QatOnly(Matching):
    """Quantization-aware training at fixed bit widths."""

    PAPER: ClassVar[str] = "LSQ, arXiv:1902.08153, with the quantizer of arXiv:2502.16638"
    CONTROLS: ClassVar[str] = "step sizes, ranges and exponents at one bit width for weights and one for layer inputs"
    SEARCH: ClassVar[Space] = declared(__file__, "qat_only")

    weight_bits: Bits = 8
    """Bit width of every weight."""
    activation_bits: Bits | None = 8
    """Bit width of every layer input; null leaves the inputs in floating point."""
    initial_bits: Bits = 16
    """Bit width at which every quantizer starts."""
    per_channel: bool = False
    """One quantizer per output channel of a weight instead of one per tensor."""
    learn_exponent: bool = True
    """Whether the weights' exponent t is learned."""
    lr_quant: Annotated[float, Bounds(0)] = 1e-4
    """Learning rate of d, q_m and t."""
    warmup: Share = 0.1
    """Training at wide bit widths; a number with a point is a fraction of the run, a whole number is steps."""
    projection: Share = 0.2
    """The bit width falls to its final value; the rest of the run trains at that."""
    projection_periods: Annotated[int, Bounds(1)] = 5
    """Number of times (plus one) that the bit width falls."""

    def __post_init__(self) -> None:
        self.compression()

    def compression(self) -> geta.CompressionConfig:
        """Return the engine's configuration, checked."""
        inputs = self.activation_bits
        return geta.CompressionConfig(
            sparsity=0.0,
            weight_bits=(self.weight_bits, self.weight_bits),
            activation_bits=None if inputs is None else (inputs, inputs),
            initial_bits=self.initial_bits,
            per_channel=self.per_channel,
            learn_exponent=self.learn_exponent,
        )

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Attach the quantizers."""
        return geta.prepare(model, example_inputs, self.compression(), calibration=list(calibration))

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return QASSO without a joint stage."""
        stages = Stages(
            warmup=self.warmup,
            projection=self.projection,
            joint=0,
            projection_periods=self.projection_periods,
        )
        schedule = stages.schedule(total_steps)
        return geta.QASSO(prepared, optimizer_class, schedule=schedule, lr_quant=self.lr_quant, **keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Fix the bit widths."""
        return geta.finish(prepared)
