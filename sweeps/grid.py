"""A grid of runs, cells by seeds: checked before the first one starts, resumed where it was left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from geta_core.errors import ArtifactError, ConfigError, GetaError
from orchestration.compose import compose
from orchestration.config import Config
from orchestration.console import write
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from sweeps.layout import write_statistics

Plan = Mapping[str, Mapping[int, Config]]
"""Cell -> seed -> configuration."""


@dataclass
class Found:
    """What runs of a grid gave.

    Attributes:
        configs: of every run, done or not.
        results: cell -> seed -> result.
        failures: "cell, seed N" -> why the run did not come to its end, or does not count.
    """

    configs: Plan
    results: dict[str, dict[int, RunResult]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, cell: str, seed: int, result: RunResult) -> None:
        """Take a result; cells stay in the order of the plan, seeds in their own."""
        self.results.setdefault(cell, {})[seed] = result
        self.results = {name: dict(sorted(self.results[name].items())) for name in self.configs if name in self.results}

    def folders(self) -> list[Path]:
        """Return the directories of the complete runs."""
        return [Path(result.directory) for own in self.results.values() for result in own.values()]

    def missing(self) -> list[tuple[str, int]]:
        """Return cell and seed of each run without a result."""
        return [
            (cell, seed) for cell, own in self.configs.items() for seed in own if seed not in self.results.get(cell, {})
        ]


def slug(text: str) -> str:
    """Return a name that a folder can have."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_").lower()


def plan_runs(
    cells: Mapping[str, Sequence[str]], seeds: Sequence[int], output: Path, study: str
) -> dict[str, dict[int, Config]]:
    """Compose and check the configuration of every run.

    Args:
        cells: name -> ``group=choice`` and ``group.key=value``.
        seeds: every cell runs with each of them.
        output: folder that receives one run directory per cell and seed.
        study: MLflow experiment.

    Raises:
        ConfigError: naming every fault of every cell.
    """
    faults: list[str] = []
    plan: dict[str, dict[int, Config]] = {}
    for name, keys in cells.items():
        cell = slug(name)
        if any(slug(other) == cell for other in plan):
            faults.append(f"the cells {name!r} and another would share the folder {cell}; rename one")
        place = [f'tracker.experiment="{study}"', f'tracker.cell="{cell}"']
        try:
            base = compose([*place, *keys])
        except ConfigError as error:
            faults.extend(f"{name}: {fault}" for fault in error.faults)
            continue
        plan[name] = {
            seed: replace(base, run=replace(base.run, seed=seed, output=str(output / f"{cell}-s{seed}")))
            for seed in seeds
        }
    if faults:
        raise ConfigError(faults)
    return plan


def collect(plan: Plan) -> Found:
    """Read the results that are there; nothing is run. A result of another configuration is named and left out."""
    found = Found(plan)
    for cell, seed, config in _each(plan):
        place = RunDirectory.of(config)
        if not place.result.is_file():
            continue
        try:
            result = RunResult.load(place.result)
        except ArtifactError as error:
            found.failures[f"{cell}, seed {seed}"] = str(error)
            continue
        if result.digest == config.digest():
            found.add(cell, seed, result)
        else:
            found.failures[f"{cell}, seed {seed}"] = (
                f"{place.path} holds a run of another configuration ({result.digest}, not {config.digest()}); "
                "give another output="
            )
    return found


def run_grid(plan: Plan) -> Found:
    """Run what is not complete, seed by seed over all cells, so that a part of the grid is a fair part.

    A run that cannot be finished stands in the result with the reason, and the others go on.
    """
    from orchestration.run import run

    found = Found(plan)
    for _, _, config in _each(plan):
        RunDirectory.of(config).check(config)
    for cell, seed, config in _each(plan):
        write(f"{cell}, seed {seed}")
        try:
            found.add(cell, seed, run(config))
        except GetaError as error:
            found.failures[f"{cell}, seed {seed}"] = str(error)
            write(f"{cell}, seed {seed}: {error}")
    write_statistics(found.folders())
    return found


def _each(plan: Plan) -> list[tuple[str, int, Config]]:
    """Return every run, the first seed of all cells before the second."""
    seeds = dict.fromkeys(seed for own in plan.values() for seed in own)
    return [(cell, seed, own[seed]) for seed in seeds for cell, own in plan.items() if seed in own]
