"""Tuning of a method before it is compared: the same number of trials for each, judged on the validation split alone.

Trial 0 has the defaults, which are the paper's; the others are drawn at random from the method's declared space
(``baselines.search``) and, for every method alike, from a third to three times the learning rate. All trials have one
seed of their own, which no compared run has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from baselines.base import about
from baselines.matching import meets
from baselines.registry import METHODS
from baselines.search import Dimension, OneOf, Real, Space
from geta_core.errors import GetaError
from orchestration.config import Config
from orchestration.result import RunResult

SEED = 1000
"""Seed of every trial."""
RATE, SPAN = "optimizer.lr", 3.0


@dataclass(frozen=True)
class Trial:
    """One setting of a method.

    Attributes:
        number: from 0.
        keys: ``group.key=value`` that differ from the defaults.
        result: None where the run failed.
        reason: why it failed, or which target it missed; else empty.
        target: relative BOPs that it was to meet; None where none was asked for.
    """

    number: int
    keys: tuple[str, ...]
    result: RunResult | None
    reason: str = ""
    target: float | None = None

    @property
    def met(self) -> bool:
        """Whether it ended, with the relative BOPs asked for."""
        return self.result is not None and meets(self.result.relative_bops, self.target)

    @property
    def score(self) -> tuple[bool, float, float, int]:
        """The target met, then validation accuracy of the compressed model, less loss, the earlier trial."""
        metrics: Mapping[str, float] = {} if self.result is None else self.result.metrics
        return self.met, metrics.get("val/accuracy", -1.0), -metrics.get("val/loss", float("inf")), -self.number


def space_of(method: str, base: Config) -> dict[str, Dimension]:
    """Return ``group.key`` -> dimension for a method around a configuration."""
    own: Space = about(METHODS.resolve(method)).search
    rate = base.optimizer.lr
    return {**{f"method.{key}": each for key, each in own.items()}, RATE: Real(rate / SPAN, rate * SPAN, log=True)}


def draw(space: Mapping[str, Dimension], number: int) -> tuple[str, ...]:
    """Return the keys of a trial; the same number gives the same keys."""
    if number == 0:
        return ()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
    trial = study.ask()
    return tuple(f"{key}={_written(_suggest(trial, key, space[key]))}" for key in sorted(space))


def tune(
    trials: int,
    space: Mapping[str, Dimension],
    run: Callable[[int, Sequence[str]], RunResult],
    target: float | None = None,
) -> list[Trial]:
    """Run the trials of one method.

    Args:
        trials: how many, the defaults among them.
        space: as :func:`space_of` returns it.
        run: trains with the given keys; its ``GetaError`` makes a failed trial.
        target: relative BOPs to meet; a trial that misses them is worse than any that meets them.
    """
    done = []
    for number in range(trials):
        keys = draw(space, number)
        try:
            trial = Trial(number, keys, run(number, keys), target=target)
        except GetaError as error:
            trial = Trial(number, keys, None, str(error), target)
        if trial.result is not None and not trial.met:
            trial = replace(trial, reason=f"relative BOPs of {trial.result.relative_bops:.4g} instead of {target:.4g}")
        done.append(trial)
    return done


def _suggest(trial: Any, key: str, dimension: Dimension) -> Any:
    if isinstance(dimension, OneOf):
        # The position is drawn: Optuna stores numbers and text only.
        return dimension.values[trial.suggest_int(key, 0, len(dimension.values) - 1)]
    if isinstance(dimension, Real):
        return float(f"{trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log):.4g}")
    return trial.suggest_int(key, dimension.low, dimension.high)


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_written, value))}]"
    return str(value)
