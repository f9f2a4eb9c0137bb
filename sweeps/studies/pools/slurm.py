"""``launcher=slurm``: runs as batch jobs, those that begin together as one array.

A job does what `geta run launcher=slurm` does and knows nothing of the study: what it gave stands in its run directory,
and Slurm says whether it goes on. It outlives the coordinator.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ArtifactError, GetaError
from orchestration.config import Config
from orchestration.files import read_object, write_json
from orchestration.launchers import scheduler
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.slurm import submit_many
from orchestration.launchers.slurm_job import RECORD, SPEC
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError
from orchestration.standing import Standing, standings
from sweeps.studies.attempts import Attempt, End
from sweeps.studies.definition import Definition
from sweeps.studies.pools.base import StudyPool
from sweeps.studies.worker import ended

ASK_EVERY = 3.0
"""Seconds between questions to Slurm."""
SETTLES = 6.0
"""Seconds that a job must be gone: a submission of a coordinator that was killed, or a file, may still arrive."""
ARRAY = "array.json"
"""In the launcher's folder: the position of a run in what was submitted together."""


class SlurmPool(StudyPool):
    """Batch jobs.

    Args:
        definition: of the study.
    """

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self._asked = float("-inf")
        self._silent: dict[Attempt, float] = {}

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Submit attempts as one array."""
        configs = [Config.from_dict(self._attempts.spec(attempt)["config"]) for attempt in attempts]
        for position, config in enumerate(configs):
            folder = LaunchFolder(RunDirectory.of(config)).path
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / ARRAY, {"position": position, "of": len(configs)})
        submit_many(configs)

    def gone(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Publish the ends of runs whose jobs are over, and return the attempts that ended without a word."""
        if time.monotonic() - self._asked < ASK_EVERY:
            return []
        places = {attempt: self._place(attempt) for attempt in attempts}
        for place in places.values():
            self._find_job(place)
        found = standings([place.path for place in places.values()])
        self._asked = time.monotonic()
        gone = []
        for attempt, standing in zip(places, found, strict=True):
            if standing.alive:
                self._silent.pop(attempt, None)
            elif standing.state == "finished":
                self._attempts.publish(attempt, self._complete(places[attempt]))
            elif time.monotonic() - self._silent.setdefault(attempt, time.monotonic()) >= SETTLES:
                end = self._end(places[attempt], standing, attempt)
                if end is None:
                    if standing.job:  # no process claims an attempt here: that Slurm had it counts as one
                        self._attempts.claim(attempt)
                    gone.append(attempt)
                else:
                    self._attempts.publish(attempt, end)
        return gone

    def stop(self, attempts: Sequence[Attempt], why: str) -> None:
        """Cancel the jobs of hopeless runs; those of a study that is stopped belong to Slurm, and go on."""
        if not why:
            return
        super().stop(attempts, why)
        places = [self._place(attempt) for attempt in attempts]
        for place in places:
            LaunchFolder(place).ask_to_stop(15)
        numbers = [each.job for each in standings([place.path for place in places]) if each.alive and each.job]
        if numbers:
            scheduler.cancel(numbers)

    def close(self) -> None:
        """Leave the jobs to Slurm."""

    def _place(self, attempt: Attempt) -> RunDirectory:
        return RunDirectory(Path(self._attempts.spec(attempt)["config"]["run"]["output"]))

    def _complete(self, place: RunDirectory) -> End:
        try:
            return ended(RunResult.load(place.result))
        except ArtifactError as error:
            return End(state="failed", reason=str(error))

    def _end(self, place: RunDirectory, standing: Standing, attempt: Attempt) -> End | None:
        """Return what the job has said of its end; None where it died without a word."""
        if place.result.is_file():
            return self._complete(place)
        try:
            LaunchFolder(place).raise_end()
        except StoppedError as stopped:
            return End(state="stopped", reason=str(stopped))
        except GetaError as error:
            return End(state="failed", reason=" ".join(str(error).split()))
        if self._attempts.stop_asked(attempt) is not None:
            return End(state="stopped", reason=standing.text)
        if standing.state == "cancelled":
            return End(state="failed", reason=f"the job {standing.job} was cancelled")
        return None

    def _find_job(self, place: RunDirectory) -> None:
        """Note the number of a job whose submitter was killed before it could: Slurm knows the script's folder."""
        folder = LaunchFolder(place).path
        if (folder / RECORD).is_file() or place.result.is_file():
            return
        spec, array = read_object(folder / SPEC), read_object(folder / ARRAY)
        shared = spec.get("shared")
        if not shared or not array:
            return
        for number, command in _queue():
            base, _, task = number.partition("_")
            if Path(str(shared)) in Path(command).parents and (array["of"] == 1 or task == str(array["position"])):
                write_json(folder / RECORD, {"job": number if task else base, "submitted": spec["began"]})
                return


def _queue() -> list[tuple[str, str]]:
    """Return number and command of every job of this user."""
    done = subprocess.run(
        ["squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i|%o"],
        capture_output=True, text=True, timeout=scheduler.PATIENCE, check=False,
    )  # fmt: skip
    pairs = [line.partition("|") for line in done.stdout.splitlines()]
    return [(number, command.split()[0]) for number, _, command in pairs if command.strip()]
