"""Prune, then quantize after training: the sequential pipeline that joint methods are measured against.

Pruning is that of ``prune_only`` (HESSO, arXiv:2409.09085: saliency, then progressive forgetting of the chosen groups
while the model trains), in the same step budget as the other methods. Afterwards weights and layer inputs are quantized
without training, each to one bit width, as in ``ptq_only`` (arXiv:2106.08295; AdaRound arXiv:2004.10568). This is the
paper's "OTO + 8-bit PTQ" (arXiv:2502.16638, Table 3).

Differs: as ``prune_only`` and ``ptq_only`` do. Weight ranges are per output channel by default, which favours this
baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import geta_core as geta
from baselines.helpers.post_training import PostTraining
from baselines.prune_only import PruneOnly
from baselines.search import Space, declared


@dataclass(frozen=True, kw_only=True)
class PruneThenPtq(PostTraining, PruneOnly):
    """Structured pruning while training, then post-training quantization."""

    PAPER: ClassVar[str] = "OTO (HESSO, arXiv:2409.09085) + PTQ (arXiv:2106.08295)"
    CONTROLS: ClassVar[str] = "which groups are removed, then one bit width for weights and one for layer inputs"
    SEARCH: ClassVar[Space] = declared(__file__, "prune_then_ptq")

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Quantize the pruned model and remove the zero groups."""
        return self.quantized(prepared, calibration)
