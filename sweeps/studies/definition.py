"""A study as it was begun: checked, written down in its folder, and compared with when it goes on."""

from __future__ import annotations

import copy
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from baselines.registry import METHODS
from baselines.schema import check_options, plain
from baselines.search import Dimension
from geta_core.errors import ConfigError, closest
from orchestration.compose import compose
from orchestration.config import Config, LauncherSettings
from orchestration.files import write_text
from orchestration.rundir import DEFAULT_ROOT, differences
from orchestration.values import read_yaml, write_yaml
from sweeps.studies.settings import LISTED, Given, SweepSettings
from sweeps.studies.slots import Slot, slots
from sweeps.studies.space import Setting, applied, listed, spaces_of

FILE = "study.yaml"
DEFAULT_TRIALS = 10


@dataclass(frozen=True)
class Definition:
    """Everything that decides a study.

    Attributes:
        name: of the study, and of its MLflow experiment.
        settings: checked.
        folder: of the study.
        token: names this folder's study in a storage.
        bases: method -> configuration that its runs start from.
        spaces: method -> ``group.key`` -> dimension.
        lists: method -> its settings, where they are known beforehand.
        launcher: where the runs execute.
    """

    name: str
    settings: SweepSettings
    folder: Path
    token: str
    bases: Mapping[str, Config]
    spaces: Mapping[str, Mapping[str, Dimension]]
    lists: Mapping[str, list[Setting]] | None
    launcher: LauncherSettings

    @property
    def trials(self) -> int:
        """Settings per method."""
        if self.lists is not None:
            return min(map(len, self.lists.values()))
        return self.settings.trials or DEFAULT_TRIALS

    def slots(self) -> Iterator[Slot]:
        """Yield the runs in order."""
        return slots(self.settings.methods, self.trials, self.settings.seeds)

    @property
    def size(self) -> int:
        """Number of runs."""
        return len(self.settings.methods) * self.trials * len(self.settings.seeds)

    def budget(self) -> str:
        """Say what every method gets."""
        run = next(iter(self.bases.values())).run
        length = f"{run.epochs} epochs" if run.steps is None else f"{run.steps} steps"
        return (
            f"{len(self.settings.methods)} methods x {self.trials} settings x {len(self.settings.seeds)} seeds = "
            f"{self.size} runs of {length}; the same for every method, tuning included"
        )

    def run_config(self, slot: Slot, setting: Setting) -> dict[str, Any]:
        """Return the resolved configuration of a run."""
        tree = applied(copy.deepcopy(self._trees[slot.method]), setting)
        tree["run"] |= {"seed": slot.seed, "output": str(self.folder / slot.folder)}
        tree["tracker"] |= {"cell": slot.cell}
        if self.launcher.name != "slurm":
            tree["launcher"] = plain(asdict(LauncherSettings()))
        return tree

    @cached_property
    def _trees(self) -> dict[str, dict[str, Any]]:
        return {method: base.to_dict() for method, base in self.bases.items()}

    def defaults(self, method: str) -> Setting:
        """Return a method's own values of the dimensions that are searched."""
        flat = self.bases[method].flat()
        return {key: flat[key] for key in self.spaces[method]}


def define(given: Given, token: str | None = None) -> Definition:
    """Check everything that is said about a study.

    Raises:
        ConfigError: naming every fault.
    """
    faults: list[str] = []
    settings = _settings(given.sweep, faults)
    name = given.name
    if not name.strip() or name != name.strip() or "/" in name or not name.isprintable():
        faults.append(f"study must be a name that fits into a path, but got {name!r}")
    folder = Path(settings.output or Path(DEFAULT_ROOT) / name).expanduser().absolute()
    bases = {method: base for method in settings.methods if (base := _base(given, method, folder, faults))}
    launcher = next((base.launcher for base in bases.values()), LauncherSettings())
    if settings.coordinator == "slurm" and launcher.name != "slurm":
        faults.append("sweep.coordinator=slurm needs launcher=slurm")
    if launcher.workers > 1:
        faults.append(f"launcher.workers={launcher.workers} must be 1 in a study: each run has one worker")
    faults += [
        f"no method takes {value}: {value.partition(':')[0]!r} is not in sweep.methods"
        f"{closest(value.partition(':')[0], settings.methods)}"
        for value in given.values
        if (owner := _owner(value)) is not None and owner not in settings.methods
    ]
    spaces: Mapping[str, Mapping[str, Dimension]] = {}
    lists = None
    if len(bases) == len(settings.methods):
        spaces = spaces_of(settings, bases, faults) if settings.sampler != "fixed" else {method: {} for method in bases}
        lists = listed(settings, bases, spaces, faults) if settings.sampler in LISTED and not faults else None
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return Definition(name, settings, folder, token or uuid.uuid4().hex, bases, spaces, lists, launcher)


def _settings(values: Mapping[str, Any], faults: list[str]) -> SweepSettings:
    checked = check_options(SweepSettings, values, "sweep.", faults)
    known = METHODS.names()
    for method in checked.get("methods", ()):
        if ":" not in method and method not in known:
            faults.append(f"unknown method {method!r} in sweep.methods{closest(method, known)}")
    try:
        return SweepSettings(**checked)
    except ConfigError as error:
        faults.extend(error.faults)
        kept = ("methods", "seeds", "output")
        return SweepSettings(**{key: value for key, value in checked.items() if key in kept and value})


def _owner(value: str) -> str | None:
    """Return the method of ``METHOD:key=value``; None for a value that is for all."""
    key = value.partition("=")[0]
    owner, colon, rest = key.rpartition(":")
    return owner if colon and "." in rest else None


def _base(given: Given, method: str, folder: Path, faults: list[str]) -> Config | None:
    own = [value for value in given.values if _owner(value) is None]
    own += [value[len(method) + 1 :] for value in given.values if _owner(value) == method]
    said = {value.partition("=")[0] for value in own}
    if "method" in said or "run.seed" in said or "run.output" in said or "tracker.cell" in said:
        faults.append("method, run.seed, run.output and tracker.cell belong to the study: sweep.methods, sweep.seeds")
    unknown = ":" not in method and method not in METHODS.names()
    if unknown:  # what is not about the method is checked all the same
        own = [value for value in own if not value.startswith("method")]
    keys = [*([] if unknown else [f"method={method}"]), f"run.output={folder}"]
    if "tracker.experiment" not in said:
        keys.append(f"tracker.experiment={given.name!r}")
    try:
        config = compose([*keys, *own])
    except ConfigError as error:
        faults.extend(error.faults)
        return None
    if unknown:
        return None
    if config.run.threads is None:
        config = replace(config, run=replace(config.run, threads=_threads(given, config.launcher)))
    return config


def _threads(given: Given, launcher: LauncherSettings) -> int:
    """Share the processors out: results depend on the number of threads, so it is written down."""
    if launcher.name == "slurm":
        return launcher.cpus_per_task
    if launcher.name == "ray":
        return max(1, int(launcher.cpus_per_worker))
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parallel = given.sweep.get("parallel", 1)
    return max(1, processors // parallel) if isinstance(parallel, int) and parallel > 0 else 1


def save(definition: Definition, given: Given) -> None:
    """Write a study down in its folder."""
    definition.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "study": definition.name,
        "token": definition.token,
        "sweep": plain(given.sweep),
        "values": list(given.values),
        "bases": {method: base.to_dict() for method, base in definition.bases.items()},
    }
    write_text(definition.folder / FILE, write_yaml(content))


def saved(folder: Path) -> tuple[Given, str, dict[str, Any]] | None:
    """Return what a folder's study was begun with, its token, and its resolved bases; None where there is none."""
    if not (folder / FILE).is_file():
        return None
    content = read_yaml(folder / FILE)
    given = Given(str(content["study"]), dict(content["sweep"]), tuple(content["values"]))
    return given, str(content["token"]), dict(content["bases"])


def merged(given: Given, folder: Path) -> Given:
    """Return what is said about a folder's study, now and before; what is said now wins."""
    before = saved(folder)
    sweep, values = ({}, ()) if before is None else (before[0].sweep, before[0].values)
    return Given(given.name, {**sweep, **given.sweep, "output": str(folder)}, given.values or values)


def settle(given: Given, folder: Path) -> Definition:
    """Return the study of a folder: a new one, or the one that is there, which must be the same.

    Raises:
        ConfigError: naming every fault, or what differs.
    """
    before = saved(folder)
    if before is None:
        definition = define(replace(given, sweep={**given.sweep, "output": str(folder)}))
        if folder.is_dir() and any(not each.name.startswith(".") for each in folder.iterdir()):
            raise ConfigError([f"sweep.output={folder} must be a new folder or a study's, but holds other files"])
        return definition
    old, token, bases = before
    if old.name != given.name:
        raise ConfigError([f"{folder} holds the study {old.name!r}, not {given.name!r}; choose another sweep.output"])
    whole = merged(given, folder)
    definition = define(whole, token)
    first = _settings(old.sweep, [])
    changed = [
        f"sweep.{key}: {value!r} -> {definition.settings.deciding().get(key)!r}"
        for key, value in first.deciding().items()
        if value != definition.settings.deciding().get(key)
    ]
    kept = {method: Config.from_dict(base) for method, base in bases.items()}
    if not any("run.threads=" in value for value in whole.values):  # shared out when the study began
        threads = {method: base.run.threads for method, base in kept.items()}
        definition = replace(
            definition, bases={m: _with_threads(b, threads.get(m)) for m, b in definition.bases.items()}
        )
    for method, base in definition.bases.items():
        if method in kept:
            changed += [f"{method}: {each}" for each in differences(kept[method].deciding(), base.deciding())][:3]
    before_trials = first.trials or (DEFAULT_TRIALS if first.sampler not in LISTED else definition.trials)
    if definition.trials < before_trials or (first.sampler == "grid" and first.trials is None and _asks_trials(whole)):
        changed.append(f"sweep.trials: {before_trials} -> {definition.trials}")
    if changed:
        raise ConfigError([f"{folder} holds a study of other settings ({'; '.join(changed)}); choose another study"])
    return definition


def _asks_trials(given: Given) -> bool:
    """Whether a number of settings is asked for."""
    return given.sweep.get("trials") is not None


def _with_threads(base: Config, threads: int | None) -> Config:
    return base if threads is None else replace(base, run=replace(base.run, threads=threads))
