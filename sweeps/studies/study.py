"""Studies from Python, and what they found."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

from geta_core.errors import ConfigError
from orchestration.files import atomic_file
from orchestration.owner import alive, owned
from orchestration.result import RunResult
from orchestration.rundir import DEFAULT_ROOT
from orchestration.signals import stop_requests
from orchestration.values import read_yaml
from sweeps.studies.definition import Definition, merged, save, saved, settle
from sweeps.studies.display import Display
from sweeps.studies.ledger import RESULT, Entry, Ledger, State, sqlite_beside
from sweeps.studies.settings import Given

CONF = Path(__file__).resolve().parent / "conf"


@dataclass(frozen=True)
class StudyTrial:
    """One run of a study.

    Attributes:
        number: position in the study, from 0.
        method: as ``method=``.
        setting: number of the method's setting.
        seed: of the run.
        state: running, complete, pruned (stopped early) or failed.
        values: of the objectives.
        params: what was searched, ``group.key`` -> value as Optuna keeps it.
        about: numbers of the result, and the reason of a failure.
        directory: of the run.
    """

    number: int
    method: str
    setting: int
    seed: int
    state: State
    values: tuple[float, ...]
    params: Mapping[str, Any]
    about: Mapping[str, Any]
    directory: Path

    @property
    def result(self) -> RunResult:
        """The whole result.

        Raises:
            ArtifactError: when the run has none.
        """
        return RunResult.load(self.directory / "result.json")


@dataclass(frozen=True)
class Cell:
    """The runs of one setting, which differ in their seed alone.

    Attributes:
        method: as ``method=``.
        setting: number of the setting.
        values: mean of each objective over the complete runs.
        seeds: number of those.
        params: what was searched.
        trials: of the setting.
    """

    method: str
    setting: int
    values: tuple[float, ...]
    seeds: int
    params: Mapping[str, Any]
    trials: Sequence[StudyTrial] = field(repr=False)


class Study:
    """Many runs under one coordinator.

    Args:
        name: of the study; a file ``NAME.yaml``, or one that comes with the package, may say more about it.
        values: ``group=name`` and ``group.key=value`` for every run, ``METHOD:key=value`` for one method, among them
            ``launcher=...``.
        sweep: keys of ``SweepSettings``, such as ``methods=["geta", "djpq"], trials=8, parallel=4``.

    Raises:
        ConfigError: naming every fault; also when the study's folder holds a different one.
    """

    def __init__(self, name: str, values: Sequence[str] = (), **sweep: Any) -> None:
        self._given = with_file(Given(name, dict(sweep), tuple(values)))
        output = self._given.sweep.get("output")
        self.folder = Path(output or Path(DEFAULT_ROOT) / self._given.name).expanduser().absolute()
        self.definition: Definition = settle(self._given, self.folder)

    @classmethod
    def open(cls, folder: Path | str) -> Study:
        """Return the study of a folder.

        Raises:
            ConfigError: when there is none.
        """
        found = saved(Path(folder))
        if found is None:
            raise ConfigError([f"{folder} holds no study"])
        return cls(found[0].name, found[0].values, **{**found[0].sweep, "output": str(folder)})

    def run(self, quiet: bool = False, signals: Sequence[Signals] = ()) -> list[StudyTrial]:
        """Do what is left of the study, and return its trials.

        Args:
            quiet: whether nothing is shown.
            signals: that ask for a stop, besides SIGTERM and SIGINT.

        Raises:
            GetaError: when another process coordinates it, or what the user can put right.
            StoppedError: when SIGTERM or SIGINT asked for a stop; another call goes on.
        """
        from sweeps.studies.coordinator import Coordinator

        definition = self.definition
        with (
            owned(self.folder),
            stop_requests(*signals) as stop,
            Display(definition.name, definition.size, quiet) as display,
        ):
            save(definition, merged(self._given, self.folder))
            ledger = self._ledger(display)
            display.say(definition.budget())
            Coordinator(definition, ledger, display).run(stop)
            found = self._trials(ledger)
        if any(base.tracker.name == "mlflow" for base in definition.bases.values()):
            from sweeps.layout import write_statistics

            write_statistics([trial.directory for trial in found if trial.state == "complete"])
        return found

    def trials(self) -> list[StudyTrial]:
        """Return the trials that there are so far."""
        if not (self.folder / "study.yaml").is_file():
            return []
        return self._trials(self._ledger(Display("", 0, quiet=True)))

    @property
    def coordinated(self) -> bool:
        """Whether a coordinator runs."""
        return alive(self.folder)

    def cells(self) -> list[Cell]:
        """Return the settings that have complete runs, with the mean of their seeds."""
        return cells_of(self.trials())

    def best(self) -> list[Cell]:
        """Return the cells that no other one beats in every objective; of infeasible ones, none."""
        return front(self.cells(), self.definition)

    def _ledger(self, display: Display) -> Ledger:
        settings = self.definition.settings
        url = settings.storage or sqlite_beside(self.folder)
        ledger = Ledger(url, self.definition.name, settings.patience_s, display.say, settings.coordinator == "here")
        ledger.open(settings.directions, self.definition.token)
        return ledger

    def _trials(self, ledger: Ledger) -> list[StudyTrial]:
        return [self._trial(entry) for entry in sorted(ledger.entries(), key=lambda entry: entry.slot)]

    def _trial(self, entry: Entry) -> StudyTrial:
        about = dict(entry.about)
        method = str(about.pop("method"))
        setting, seed = int(about.pop("setting")), int(about.pop("seed"))
        directory = self.folder / str(about.pop("directory"))
        about = dict(about.get(RESULT, {}))
        params = {key.removeprefix(f"{method}:"): value for key, value in entry.params.items()}
        return StudyTrial(entry.slot, method, setting, seed, entry.state, entry.values, params, about, directory)


def with_file(given: Given) -> Given:
    """Put what a study file says under what the user says.

    Raises:
        ConfigError: when the file says something else than a study.
    """
    path = Path(given.name) if given.name.endswith((".yaml", ".yml")) else CONF / f"{given.name}.yaml"
    if not path.is_file() and path.parent == CONF:
        return given
    content = read_yaml(path)
    faults = [
        f"{path} may hold sweep and values, but holds {key!r}" for key in content if key not in ("sweep", "values")
    ]
    sweep, values = content.get("sweep") or {}, content.get("values") or []
    if not isinstance(sweep, dict) or not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        faults.append(f"{path} must hold a mapping sweep and a list of texts values")
    if faults:
        raise ConfigError(faults)
    said = {value.partition("=")[0] for value in given.values}
    kept = [value for value in values if value.partition("=")[0] not in said]
    return Given(path.stem, {**sweep, **given.sweep}, (*kept, *given.values))


def cells_of(trials: Sequence[StudyTrial]) -> list[Cell]:
    """Return the settings that have complete runs, with the mean of their seeds."""
    groups: dict[tuple[int, str], list[StudyTrial]] = defaultdict(list)
    for trial in trials:
        groups[trial.setting, trial.method].append(trial)
    found = []
    for (setting, method), own in groups.items():
        done = [trial for trial in own if trial.state == "complete"]
        if done:
            means = tuple(map(statistics.fmean, zip(*(trial.values for trial in done), strict=True)))
            found.append(Cell(method, setting, means, len(done), done[0].params, own))
    return found


def results_of(trials: Sequence[StudyTrial]) -> dict[str, dict[int, RunResult]]:
    """Return method and setting -> seed -> result of the complete runs: what figures and reports are made from."""
    found: dict[str, dict[int, RunResult]] = defaultdict(dict)
    for trial in trials:
        if trial.state == "complete":
            found[f"{trial.method} {trial.setting}"][trial.seed] = trial.result
    return dict(found)


def draw(trials: Sequence[StudyTrial], path: Path) -> Path | None:
    """Draw accuracy against relative BOPs with the front; None without matplotlib or a complete run."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    from sweeps.figures import trade_off

    results = results_of(trials)
    if not results:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    trade_off.plot(figure, results)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    return path


def front(cells: Sequence[Cell], definition: Definition) -> list[Cell]:
    """Return the feasible cells that no other feasible one beats: as good in every objective, and better in one."""
    settings = definition.settings
    signs = [1.0 if direction == "maximize" else -1.0 for direction in settings.directions]

    def feasible(cell: Cell) -> bool:
        done = [trial for trial in cell.trials if trial.state == "complete"]
        accuracy = statistics.fmean(trial.about["val/accuracy"] for trial in done)
        bops = statistics.fmean(trial.about["relative_bops"] for trial in done)
        return all(value <= 0 for value in settings.constraints(accuracy, bops).values())

    def scores(cell: Cell) -> list[float]:
        return [sign * value for sign, value in zip(signs, cell.values, strict=True)]

    kept = [cell for cell in cells if feasible(cell) and all(map(math.isfinite, cell.values))]
    found = []
    for cell in kept:
        mine = scores(cell)
        beaten = any(
            all(b >= a for a, b in zip(mine, scores(other), strict=True)) and scores(other) != mine for other in kept
        )
        if not beaten:
            found.append(cell)
    return found
