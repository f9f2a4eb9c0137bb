"""What methods that prune groups while training have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import geta_core as geta
from baselines.helpers.gauge import Bits, Gauge
from baselines.helpers.pruner import Budget, GroupPruner
from baselines.helpers.scores import Criterion
from baselines.matching import Matching
from baselines.schema import Bounds
from geta_core.qasso.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Groups(Matching):
    """How many groups go."""

    sparsity: float = 0.5
    """Fraction of the prunable groups that are exactly zero at the end, 0 <= sparsity < 1."""
    divisible_by: int = 1
    """Kept groups of a family are a multiple of this number."""
    min_kept: int = 1
    """Fewest groups that are kept in each family."""

    def __post_init__(self) -> None:
        self.pruning_config()

    def pruning_config(self) -> geta.CompressionConfig:
        """Return the engine's configuration of the pruning, checked; nothing is quantized."""
        return geta.CompressionConfig(
            sparsity=self.sparsity,
            weight_bits=None,
            activation_bits=None,
            divisible_by=self.divisible_by,
            min_kept=self.min_kept,
        )

    def budget(self, prepared: geta.Prepared) -> Budget | None:
        """Return the BOPs to meet with the bit widths that the finished model will have; None where none are asked."""
        target = self.target_bops
        if target is None:
            return None
        gauge, both = Gauge.of(prepared), self._final_bits()
        return Budget(lambda dead: gauge.relative_bops(dead, *both), target)

    def _final_bits(self) -> tuple[Bits, Bits]:
        """Return the bit widths of weights and inputs; a method without them leaves floating point."""
        own: Any = self
        return getattr(own, "weight_bits", None), getattr(own, "activation_bits", None)


@dataclass(frozen=True, kw_only=True)
class Pruning(Groups):
    """How many groups go while the model trains, and which."""

    criterion: Criterion = "hesso"
    """Groups with the lowest score go: hesso, magnitude, taylor or random."""
    pruning_periods: Annotated[int, Bounds(1)] = 10
    """Portions in which the groups are removed."""

    def pruner(self, prepared: geta.Prepared, schedule: Schedule) -> GroupPruner:
        """Return what removes the groups in the joint stage of a schedule."""
        return GroupPruner(prepared, self.criterion, schedule, self.budget(prepared))
