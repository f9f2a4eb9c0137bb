"""When QASSO does what: the four stages in steps, the falling bit bound and the pruning periods. Host integers only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from geta_core.errors import ConfigError

Stage = Literal["warmup", "projection", "joint", "cooldown"]
STAGES: tuple[Stage, ...] = ("warmup", "projection", "joint", "cooldown")


class PeriodStep(NamedTuple):
    """Where a step of the joint stage lies: number of its period, step inside the period, steps of the period."""

    period: int
    step: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Lengths of the stages in optimizer steps (arXiv:2502.16638, Table 7: B, K_b, P, K_p).

    Raises:
        ConfigError: naming every length or period count that does not fit.
    """

    warmup: int
    """Steps of the ordinary optimizer; bit widths move freely between 2 and the initial bits."""
    projection: int
    """Steps in which the upper bound of the bit widths falls from the initial bits to the top of the range (K_b)."""
    joint: int
    """Steps in which groups are forgotten while the bit widths are learned (K_p)."""
    cooldown: int
    """Steps with pruned groups at zero and whole, fixed bit widths."""
    projection_periods: int = 5
    """Periods of the projection stage (B); the bound falls after each but the last."""
    pruning_periods: int = 10
    """Periods of the joint stage (P); each ends with its share of the groups at zero."""

    def __post_init__(self) -> None:
        faults = self._faults()
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        values = asdict(self)
        faults = []
        for name, value in values.items():
            least = 0 if name in STAGES else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                faults.append(f"schedule.{name} must be a whole number >= {least}, but got {value!r}")
        if faults:
            return faults
        if self.total == 0:
            faults.append("the schedule must have at least one step, but every stage has length 0")
        for stage, periods in (("projection", "projection_periods"), ("joint", "pruning_periods")):
            if 0 < values[stage] < values[periods]:
                faults.append(
                    f"schedule.{periods} must not exceed schedule.{stage}, but got {values[periods]} periods for "
                    f"{values[stage]} steps; lower {periods} to {values[stage]} or lengthen the stage"
                )
        return faults

    @classmethod
    def fractions(
        cls,
        total_steps: int,
        *,
        warmup: float,
        projection: float,
        joint: float,
        cooldown: float,
        projection_periods: int = 5,
        pruning_periods: int = 10,
    ) -> Schedule:
        """Build the schedule of a run of ``total_steps`` steps from the stages' shares, which must sum to 1.

        The ends of the stages are rounded, so the lengths always add up to ``total_steps``.

        Raises:
            ConfigError: naming every share that is negative or too small to give a step, a wrong sum, or wrong periods.
        """
        shares = (warmup, projection, joint, cooldown)
        faults = [
            f"schedule fraction {name} must be a number in [0, 1], but got {share!r}"
            for name, share in zip(STAGES, shares, strict=True)
            if not _is_share(share)
        ]
        if not isinstance(total_steps, int) or isinstance(total_steps, bool) or total_steps < 1:
            faults.append(f"total_steps must be a whole number >= 1, but got {total_steps!r}")
        if not faults and abs(math.fsum(shares) - 1) > 1e-6:
            faults.append(f"schedule fractions must sum to 1, but {shares} sum to {math.fsum(shares):g}")
        if faults:
            raise ConfigError(faults)
        ends = [
            *(min(total_steps, math.floor(total_steps * math.fsum(shares[:n]) + 0.5)) for n in range(4)),
            total_steps,
        ]
        lengths = [end - start for start, end in pairwise(ends)]
        for name, share, length in zip(STAGES, shares, lengths, strict=True):
            # A rounding remainder of one part in a million is no wish for a stage.
            if share * total_steps > 1e-6 and length == 0:
                faults.append(
                    f"schedule fraction {name}={share:g} of {total_steps} steps gives no step; raise it or use 0"
                )
        if faults:
            raise ConfigError(faults)
        return cls(
            **dict(zip(STAGES, lengths, strict=True)),
            projection_periods=projection_periods,
            pruning_periods=pruning_periods,
        )

    @property
    def total(self) -> int:
        """Number of steps of all stages."""
        return self.warmup + self.projection + self.joint + self.cooldown

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """Return the stage of step number ``step`` (from 0) and the step inside it; past the end it is the cooldown."""
        for stage, length in zip(STAGES[:3], (self.warmup, self.projection, self.joint), strict=True):
            if step < length:
                return stage, step
            step -= length
        return "cooldown", step

    def max_bits(self, step: int, initial: float, high: float) -> float:
        """Return the upper bound of the bit widths after step number ``step``.

        It is ``initial`` in the warmup and falls by (initial - high) / (B - 1), a fraction of a bit if need be, after
        each of the first B - 1 of the B periods, however the steps divide; with B = 1 it is ``high`` at once.
        """
        stage, at = self.stage_at(step)
        if stage == "warmup":
            return initial
        last = self.projection_periods - 1
        if stage != "projection" or last == 0:
            return high
        period = at * self.projection_periods // self.projection
        return high if period == last else initial - period * (initial - high) / last

    def period_at(self, step: int) -> PeriodStep:
        """Return where step number ``step`` of the joint stage (from 0) lies in the P periods.

        Periods differ by at most one step where P does not divide the stage.
        """
        periods = self.pruning_periods
        period = step * periods // self.joint
        start, end = (-(-number * self.joint // periods) for number in (period, period + 1))
        return PeriodStep(period, step - start, end - start)

    def boundary(self, step: int) -> bool:
        """Whether step number ``step`` (from 0) is the last one of a stage, or of a period of bits or of pruning."""
        return self._place(step) != self._place(step + 1)

    def _place(self, step: int) -> tuple[Stage, int]:
        stage, at = self.stage_at(step)
        if stage == "projection":
            return stage, at * self.projection_periods // self.projection
        if stage == "joint":
            return stage, self.period_at(at).period
        return stage, int(step >= self.total)


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
