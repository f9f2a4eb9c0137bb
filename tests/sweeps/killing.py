"""kill -9 of every part of a study that really runs, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestration.owner import process_lives
from sweeps.studies.attempts import Attempt, Attempts
from sweeps.studies.study import Study, StudyTrial

SHORT = ("task=digits", "model.width=4", "run.steps=60", "run.checkpoint_every=10", "run.threads=1", "run.device=cpu",
         "tracker=jsonl")  # fmt: skip


class Coordinator:
    """The command of a study, started again whenever it was killed.

    Args:
        folder: of the study.
        arguments: besides those of the study's name and folder.
        environment: besides this process's.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        self._command = [sys.executable, "-m", "sweeps.cli", "sweep", "study=killed", f"sweep.output={folder}"]
        self._command += arguments
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self) -> None:
        """Start the command."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def kill(self) -> None:
        """End the process without a word, and start the command again."""
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self.start()

    def wait(self, seconds: float) -> None:
        """Wait for the study's end."""
        assert self.process is not None
        assert self.process.wait(seconds) == 0, self.said()

    def said(self) -> str:
        """Return the end of what it said."""
        return self.log.read_text()[-3000:]

    def close(self) -> None:
        """End what a failed test has left."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in {*workers(self.folder).values(), *job_workers(self.folder).values()}:
            os.kill(pid, signal.SIGKILL)


Workers = Callable[[Path], dict[Attempt, int]]
"""Finds the attempts of a study whose processes live here, with their pids."""


def workers(folder: Path) -> dict[Attempt, int]:
    """Return the attempts whose processes live here, by their claims."""
    found = {}
    for path in (folder / ".attempts").glob("*.claim"):
        claim = json.loads(path.read_text())
        if "pid" in claim and process_lives(int(claim["pid"]), float(claim["time"])):
            slot, _, number = path.stem.partition("-")
            found[Attempt(int(slot), int(number))] = int(claim["pid"])
    return found


def job_workers(folder: Path) -> dict[Attempt, int]:
    """Return the attempts whose batch jobs run in processes of this machine, by the locks of their runs."""
    found = {}
    for slot, number in Attempts(folder).last().items():
        for lock in folder.glob(f"{slot:05d}-*/launcher/.lock"):
            text = lock.read_text()
            owner = json.loads(text) if text.strip() else {}
            runs = "pid" in owner and process_lives(int(owner["pid"]), float(owner["time"]))
            if runs and (lock.parent / "worker-0.log").exists():
                found[Attempt(slot, number)] = int(owner["pid"])
    return found


def kill_worker(folder: Path, spared: set[int], chance: random.Random, find: Workers) -> int | None:
    """Kill the process of a run that was not killed before; returns its slot."""
    doomed = [(attempt, pid) for attempt, pid in find(folder).items() if attempt.slot not in spared]
    if not doomed:
        return None
    attempt, pid = chance.choice(sorted(doomed))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return attempt.slot if Attempts(folder).end(attempt) is None else None


def kill_some_worker(
    folder: Path, spared: set[int], chance: random.Random, why: Callable[[], str], find: Workers
) -> int:
    """Wait for a worker that was not killed before, and kill it; returns its slot."""
    end = time.monotonic() + 300
    while (slot := kill_worker(folder, spared, chance, find)) is None:
        assert time.monotonic() < end, why()
        time.sleep(0.1)
    return slot


def until(what: Callable[[], bool], why: Callable[[], str], seconds: float) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


def check(folder: Path, expected: int, deaths: set[int]) -> list[StudyTrial]:
    """Check that every run has one result, and none was run twice to its end; returns the trials."""
    trials = Study.open(folder).trials()
    assert [trial.number for trial in trials] == list(range(expected))
    assert Counter(trial.state for trial in trials) == {"complete": expected}
    attempts, last = Attempts(folder), Attempts(folder).last()
    for trial in trials:
        tries = [Attempt(trial.number, number) for number in range(1, last[trial.number] + 1)]
        ends = [end.state for each in tries if (end := attempts.end(each)) is not None]
        assert ends.count("complete") == 1, (trial, ends)
        if trial.number not in deaths:
            assert all(attempts.given_up(each) or attempts.end(each) for each in tries), "no other attempt was lost"
        lines = [json.loads(line) for line in (trial.directory / "metrics.jsonl").read_text().splitlines()]
        assert sum(line["kind"] == "final" for line in lines) == 1
        assert trial.result.metrics["val/accuracy"] == trial.values[0]
    return trials
