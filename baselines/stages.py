"""Stage lengths as a user states them: fractions of the run, steps, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import geta_core as geta
from baselines.schema import Bounds
from geta_core.errors import ConfigError
from geta_core.qasso.schedule import Stage

Share = Annotated[float, Bounds(0, 1)] | Annotated[int, Bounds(0)]
"""A fraction of the run (0.1, 1.0) or a number of steps (100, 1)."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Lengths of the stages; a number with a point is a fraction of the run, a whole number is steps."""

    warmup: Share = 0.1
    """Ordinary training, with wide bit widths."""
    projection: Share = 0.2
    """The upper bound of the bit widths falls from initial_bits to the top of the range."""
    joint: Share = 0.3
    """Groups are forgotten while the bit widths are learned."""
    cooldown: Share | None = None
    """Pruned groups stay zero and bit widths are fixed; null takes what the others leave."""
    projection_periods: Annotated[int, Bounds(1)] = 5
    """Number of times (plus one) that the upper bound falls."""
    pruning_periods: Annotated[int, Bounds(1)] = 10
    """Portions in which the groups are removed."""

    def schedule(self, total_steps: int) -> geta.Schedule:
        """Return the schedule of a run.

        Raises:
            ConfigError: when the lengths do not fit the run.
        """
        try:
            return self._schedule(total_steps)
        except ConfigError as error:
            faults = [fault.replace("schedule fraction ", "method.") for fault in error.faults]
            raise ConfigError([fault.replace("schedule.", "method.") for fault in faults]) from error

    def _schedule(self, total_steps: int) -> geta.Schedule:
        first = (self.warmup, self.projection, self.joint)
        periods = {"projection_periods": self.projection_periods, "pruning_periods": self.pruning_periods}
        if all(isinstance(share, float) for share in first) and not isinstance(self.cooldown, int):
            rest = 1.0 - sum(first) if self.cooldown is None else self.cooldown
            if rest < -1e-9:
                raise ConfigError([f"method.warmup + projection + joint must not exceed 1, but sum to {sum(first):g}"])
            warmup, projection, joint = (float(share) for share in first)
            return geta.Schedule.fractions(
                total_steps, warmup=warmup, projection=projection, joint=joint, cooldown=max(rest, 0.0), **periods
            )
        warmup, projection, joint = (_steps(share, total_steps) for share in first)
        left = total_steps - warmup - projection - joint
        cooldown = left if self.cooldown is None else _steps(self.cooldown, total_steps)
        if left < 0 or cooldown != left:
            lengths = f"warmup {warmup}, projection {projection}, joint {joint}"
            lengths += "" if self.cooldown is None else f", cooldown {cooldown}"
            raise ConfigError([f"method's stages must fit the run's {total_steps} steps, but are {lengths}"])
        return geta.Schedule(warmup=warmup, projection=projection, joint=joint, cooldown=cooldown, **periods)


def _steps(share: float, total_steps: int) -> int:
    return share if isinstance(share, int) else round(share * total_steps)


def without_stage(schedule: geta.Schedule, stage: Stage) -> geta.Schedule:
    """Return a schedule of the same total without one of its stages.

    The cool-down takes the steps, those of the cool-down go to the warm-up: the other stages keep their lengths. The
    joint stage keeps one step, in which all groups go at once.
    """
    if stage == "cooldown":
        return replace(schedule, warmup=schedule.warmup + schedule.cooldown, cooldown=0)
    if stage == "warmup":
        return replace(schedule, warmup=0, cooldown=schedule.cooldown + schedule.warmup)
    if stage == "projection":
        return replace(schedule, projection=0, cooldown=schedule.cooldown + schedule.projection)
    if not schedule.joint:
        return schedule
    return replace(schedule, joint=1, pruning_periods=1, cooldown=schedule.cooldown + schedule.joint - 1)
