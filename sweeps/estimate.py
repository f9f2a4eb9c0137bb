"""Runs as commands, and how long they would take by the step times that records hold."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from geta_core.errors import ArtifactError, GetaError
from orchestration.compose import compose
from orchestration.config import Config
from sweeps.grid import Plan
from sweeps.records import listed_records, read_record, runs_of

CPU = "cpu"
SAME = ("task.name", "model.name", "method.name", "run.precision", "task.batch_size", "run.compile")
"""Keys that must be equal, with all of ``model.``, for a step to take as long."""


def commands(plan: Plan) -> Iterator[str]:
    """Yield ``geta run ...`` for every run, with each key that differs from what its parts bring along."""
    for own in plan.values():
        for config in own.values():
            yield shlex.join(["geta", "run", *arguments_of(config)])


def arguments_of(config: Config) -> list[str]:
    """Return arguments that compose to the same configuration."""
    choices = tuple(f"{group}={getattr(config, group).name}" for group in ("task", "model", "method"))
    wanted, plain = config.flat(), _plain(choices)
    chosen = ("optimizer", "scheduler")
    choices += tuple(f"{group}={wanted[f'{group}.name']}" for group in chosen if _differs(group, wanted, plain))
    plain = _plain(choices)
    changed = {key: value for key, value in wanted.items() if plain.get(key) != value}
    return [*choices, *(f"{key}={_written(value)}" for key, value in changed.items())]


def _differs(group: str, wanted: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    return bool(wanted[f"{group}.name"] != plain[f"{group}.name"])


@cache
def _plain(choices: tuple[str, ...]) -> Mapping[str, Any]:
    return compose(choices).flat()


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_written, value))}]" if isinstance(value, (list, tuple)) else str(value)


class StepTimes:
    """Seconds of one optimizer step on a GPU, from the runs in records that say their configuration.

    Args:
        folder: of the records; one that is not there holds none.
    """

    def __init__(self, folder: Path) -> None:
        self._rows: list[Mapping[str, Any]] = []
        for path in listed_records(folder):
            try:
                self._rows += [row for row in runs_of(read_record(path)) if row.get("config")]
            except ArtifactError:
                continue  # `geta check-records` names it

    def seconds(self, config: Config) -> tuple[float, str] | None:
        """Return seconds per step and the device, or None where no run on a GPU is like this one."""
        wanted = _key(config.deciding())
        for row in self._rows:
            if row["device"] != CPU and row["steps"] and _key(row["config"]) == wanted:
                return float(row["seconds"]["train"]) / int(row["steps"]), str(row["device"])
        return None

    def hours(self, config: Config) -> tuple[float, str] | None:
        """Return GPU hours of a run and the device; None where the step time or the number of steps is not known."""
        found = self.seconds(config)
        steps = planned_steps(config) if found is not None else None
        if found is None or steps is None:
            return None
        return found[0] * steps / 3600, found[1]


def planned_steps(config: Config) -> int | None:
    """Return the optimizer steps of a run; None where they follow from data that is not at hand."""
    if config.run.steps is not None:
        return config.run.steps
    import torch

    from orchestration.tasks import TASKS
    from orchestration.tasks.base import Placement

    try:
        task = TASKS.resolve(config.task.name)(**config.task.options)
        task.setup(config.run.seed, Placement(torch.device(CPU)))
    except GetaError:
        return None
    return config.run.epochs * int(task.steps_per_epoch())


def _key(config: Mapping[str, Any]) -> tuple[Any, ...]:
    model: Sequence[Any] = sorted((key, repr(value)) for key, value in config.items() if key.startswith("model."))
    return (*(repr(config.get(key)) for key in SAME), *model)
