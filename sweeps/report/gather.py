"""Finds finished runs below a folder and sorts them into cells: runs that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from geta_core.errors import ConfigError, GetaError
from orchestration.compose import load
from orchestration.config import Config
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from sweeps.grid import Found

DEPTH = 6


def gather(folder: Path) -> Found:
    """Read every run directory at or below a folder.

    A cell is named by ``tracker.cell`` where the run has one, else by its method; cells of one name that differ in more
    than the seed are told apart by the digest of their configuration. Runs that are not complete stand in ``failures``.

    Raises:
        ConfigError: when there is no run.
    """
    plan: dict[str, dict[int, Config]] = {}
    done: list[tuple[str, int, RunResult]] = []
    failures: dict[str, str] = {}
    names: dict[str, str] = {}  # digest without the seed -> cell
    for place in sorted(_places(folder, DEPTH), key=lambda each: each.path):
        try:
            config = load(place.resolved)
            result = RunResult.load(place.result) if place.result.is_file() else None
        except GetaError as error:
            failures[str(place.path)] = str(error)
            continue
        cell = _cell(config, names)
        plan.setdefault(cell, {})[config.run.seed] = config
        if result is None:
            failures[f"{cell}, seed {config.run.seed}"] = f"{place.path} is not complete"
        else:
            done.append((cell, config.run.seed, replace(result, directory=str(place.path))))
    if not plan:
        raise ConfigError([f"{folder} must hold run directories, but holds none"])
    found = Found(plan, failures=failures)
    for cell, seed, result in done:
        found.add(cell, seed, result)
    return found


def _cell(config: Config, names: dict[str, str]) -> str:
    identity = replace(config, run=replace(config.run, seed=0)).digest()
    if identity not in names:
        name = config.tracker.cell or config.method.name
        names[identity] = name if name not in names.values() else f"{name} ({identity[:6]})"
    return names[identity]


def _places(folder: Path, depth: int) -> Iterator[RunDirectory]:
    place = RunDirectory(folder)
    if place.resolved.is_file():
        yield place
    elif depth and folder.is_dir():
        for each in folder.iterdir():
            if each.is_dir() and not each.is_symlink():
                yield from _places(each, depth - 1)
