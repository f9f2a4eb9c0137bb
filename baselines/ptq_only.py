"""PTQ only: a dense model is trained, then quantized without training; nothing is pruned.

Papers: ranges and the standard pipeline of Nagel et al. (arXiv:2106.08295, section 3), which rounds by AdaRound
(arXiv:2004.10568, Eq. 22 to 25) where there is calibration data; also to nearest, or by OBQ (arXiv:2208.11580). The
equations stand in ``baselines.helpers.ranges``, ``rounding`` and ``surgeon``.

Differs: batch normalisations are not folded into the weights (ranges are per output channel by default, which does the
same for the weights' scale). AdaRound's error is taken before the activation function, over the whole calibration set
at once instead of minibatches of 32, and a row keeps rounding to nearest where that is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

import geta_core as geta
from baselines.helpers.dense_start import DenseStart
from baselines.helpers.post_training import PostTraining, Rounding
from baselines.matching import Matching
from baselines.search import Space, declared


@dataclass(frozen=True, kw_only=True)
class PtqOnly(DenseStart, PostTraining, Matching):
    """Dense training, then post-training quantization."""

    PAPER: ClassVar[str] = "Nagel et al., arXiv:2106.08295; AdaRound arXiv:2004.10568"
    CONTROLS: ClassVar[str] = "one bit width for the weights and one for the layer inputs, after training"
    SEARCH: ClassVar[Space] = declared(__file__, "ptq_only")

    rounding: Rounding = "adaround"
    """adaround, as in the standard pipeline with calibration data; or nearest, or obq, with which it is OBQ alone."""

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Capture the model; nothing is quantized while it trains."""
        config = geta.CompressionConfig(sparsity=0.0, weight_bits=None, activation_bits=None)
        return geta.prepare(model, example_inputs, config)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Quantize the trained model."""
        return self.quantized(prepared, calibration)
