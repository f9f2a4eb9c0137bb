"""The method; paper (arXiv:2208.11580), equations and differences stand in the package's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

import geta_core as geta
from baselines.helpers.dense_start import DenseStart
from baselines.helpers.post_training import PostTraining, Rounding
from baselines.helpers.pruning import Groups
from baselines.helpers.sequence import require_finished
from baselines.helpers.statistics import resettle_statistics_
from baselines.obc.groups import GroupSurgeon
from baselines.obc.weights import prune_weights_
from baselines.search import Space, declared


@dataclass(frozen=True, kw_only=True)
class Obc(DenseStart, PostTraining, Groups):
    """Dense training, then optimal brain pruning and quantization."""

    PAPER: ClassVar[str] = "OBC (ExactOBS, OBQ), arXiv:2208.11580"
    CONTROLS: ClassVar[str] = "which groups (or weights) are removed and where weights are rounded to, after training"
    SEARCH: ClassVar[Space] = declared(__file__, "obc")

    rounding: Rounding = "obq"
    """obq; or nearest or adaround, with which only the pruning is OBC's."""
    structure: Literal["groups", "weights"] = "groups"
    """groups: sparsity counts groups, which are cut out; weights: it counts single weights, which become zeros."""
    reset_norms: bool = True
    """Take the statistics of batch normalisations anew after pruning."""

    def knobs(self) -> tuple[str, ...]:
        """Return the fields that move the BOPs; single zeros do not."""
        return tuple(name for name in super().knobs() if name != "sparsity" or self.structure == "groups")

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups; nothing is pruned or quantized while the model trains."""
        return geta.prepare(model, example_inputs, self.pruning_config())

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Prune, quantize, and remove the zero groups."""
        require_finished(prepared)
        if self.structure == "weights":
            prune_weights_(prepared.model, calibration, self.sparsity, self.damping)
        else:
            GroupSurgeon(prepared, calibration, self.damping).prune_(self.budget(prepared))
        if self.reset_norms:
            resettle_statistics_(prepared.model, calibration)
        return self.quantized(prepared, calibration)
