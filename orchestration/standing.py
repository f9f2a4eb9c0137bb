"""How far a run is, whoever executes it: told from its directory, the processes of this machine, and Slurm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geta_core.errors import GetaError
from orchestration.files import read_object
from orchestration.launchers import scheduler
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.requeue import saved_step
from orchestration.launchers.slurm_job import RECORD, SPEC
from orchestration.owner import alive
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError

State = Literal["waiting", "running", "finished", "cancelled", "stopped", "failed"]
ALIVE: tuple[State, ...] = ("waiting", "running")


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    directory: Path
    state: State
    job: str = ""
    """Number of its Slurm job, if it has one."""
    step: int = 0
    """Step of its last checkpoint."""
    accuracy: float | None = None
    """The last that was measured: on the test split when it is finished, else on the validation split."""
    text: str = ""
    """What else there is to say, in one line."""

    @property
    def alive(self) -> bool:
        """Whether the run is going on, or will."""
        return self.state in ALIVE


def find_runs(folder: Path) -> list[Path]:
    """Return the run directories in a folder and below it, or the folder itself where it is one."""
    found = []
    for path, names, _ in os.walk(folder):
        if _is_run(Path(path)):
            found.append(Path(path))
            names.clear()  # a run holds no runs
    return sorted(found)


def standings(directories: Iterable[Path]) -> list[Standing]:
    """Say where runs stand; Slurm is asked once for all of them, and not at all where none needs it.

    Raises:
        GetaError: when Slurm does not answer.
    """
    places = [RunDirectory(path) for path in directories]
    numbers = {place.path: job_of(place) for place in places}
    known = scheduler.jobs(numbers[each.path] for each in places if numbers[each.path] and not each.result.is_file())
    return [_standing(place, numbers[place.path], known) for place in places]


def job_of(place: RunDirectory) -> str:
    """Return the number of a run's last Slurm job, or nothing."""
    return str(read_object(LaunchFolder(place).path / RECORD).get("job", ""))


def log_files(place: RunDirectory) -> list[Path]:
    """Return the logs of a run: the leading worker's, or, if it never came to that, those of what should start it."""
    folder, number = LaunchFolder(place), job_of(place)
    shared = read_object(folder.path / SPEC).get("shared")
    of_job = sorted(Path(shared).glob(f"slurm/{number}_*log.*")) if shared and number else []
    own = folder.log("worker-0")
    return [own] if own.is_file() else [path for path in (*of_job, folder.log("driver")) if path.is_file()]


def _is_run(path: Path) -> bool:
    launcher = LaunchFolder(RunDirectory(path)).path
    return (path / "resolved.yaml").is_file() or (launcher / SPEC).is_file()


def _standing(place: RunDirectory, number: str, known: Mapping[str, scheduler.Job]) -> Standing:
    step, accuracy = saved_step(place.checkpoints), _accuracy(place)
    if place.result.is_file():
        result = RunResult.load(place.result)
        sizes = f"rel. BOPs {result.relative_bops:.2%}, W {result.weight_bits:.2f}, A {result.activation_bits:.2f}"
        return Standing(place.path, "finished", number, result.steps, result.accuracy, sizes)
    folder = LaunchFolder(place)
    job = known.get(number)
    if job is not None and (job.waits or job.runs):
        attempts = read_object(folder.attempts)
        starts = len(attempts.get("attempts", [])) if attempts.get("launch") == number else 0
        again = [f"started again {starts} times"] if starts else []
        about = f"waits ({job.reason})" if job.waits else f"on {job.nodes} for {job.elapsed}"
        state: State = "waiting" if job.waits else "running"
        return Standing(place.path, state, number, step, accuracy, ", ".join([about, *again]))
    if alive(place.path) or alive(folder.path):
        return Standing(place.path, "running", number, step, accuracy, "in a process of this machine")
    how, text = _ended(folder, number, job)
    return Standing(place.path, how, number, step, accuracy, text)


def _ended(folder: LaunchFolder, number: str, job: scheduler.Job | None) -> tuple[State, str]:
    """Say how a run ended that has no result: by what it has said itself, else by what Slurm says."""
    if job is not None and job.state == "CANCELLED":
        return "cancelled", "the same command goes on"
    try:
        folder.raise_end()
    except StoppedError as stopped:
        return "stopped", str(stopped)
    except GetaError as error:
        return "failed", " ".join(str(error).split())
    if job is not None:
        remedy = scheduler.REMEDIES.get(job.state, "its log may say why")
        return "failed", f"Slurm says {job.state}, {job.reason}: {remedy}"
    return "stopped", "Slurm has forgotten its job" if number else "its process has ended"


def _accuracy(place: RunDirectory) -> float | None:
    try:
        lines = (place.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line)["metrics"].get("val/accuracy") for line in lines[-20:]]
    except (OSError, ValueError, KeyError):
        return None
    measured = [each for each in found if each is not None]
    return float(measured[-1]) if measured else None
