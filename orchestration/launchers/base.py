"""What launchers share: the contract, and the folder in which a launcher and its workers leave word for each other.

A launcher starts workers that each call ``orchestration.run.attempt``. Whatever a worker has to say goes through files
in the run directory, which every launcher has, on one machine and on a cluster: the request to stop, how an attempt
ended, one log per worker. A launcher's own death therefore loses nothing, and neither does a worker's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

from geta_core.errors import ConfigError, GetaError
from orchestration.config import Config
from orchestration.files import write_json, write_text
from orchestration.result import RunResult
from orchestration.rundir import LAUNCHER_FOLDER, RunDirectory
from orchestration.signals import StoppedError


class Launcher(Protocol):
    """One way to execute a run."""

    def launch(self, config: Config, place: RunDirectory) -> RunResult:
        """Execute the run in a directory that was checked, and wait for its end.

        Raises:
            GetaError: for whatever the user can put right.
            StoppedError: when a request to stop was obeyed; the next launch goes on from there.
        """


class LaunchFolder:
    """The folder ``launcher`` of a run directory.

    Args:
        place: the run directory.
    """

    def __init__(self, place: RunDirectory) -> None:
        self.path = place.path / LAUNCHER_FOLDER
        self.stop = self.path / "stop"
        self.cancelled = self.path / "cancelled"
        self.attempts = self.path / "attempts.json"
        self.timeline = self.path / "timeline.jsonl"

    def open(self) -> None:
        """Make the folder and remove the words of an earlier attempt; logs and counts stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in [self.stop, *self.ends()]:
            left.unlink(missing_ok=True)

    def remove_if_alone(self) -> None:
        """Remove the folder, and the run directory, when no run came of it: nothing was wrong but the settings."""
        run = self.path.parent
        if {each.name for each in run.iterdir()} - {self.path.name, ".lock"}:
            return
        shutil.rmtree(run)

    def log(self, who: str) -> Path:
        """Return the log file of a worker or of the launcher's own processes."""
        return self.path / f"{who}.log"

    def ask_to_stop(self, signal_number: int) -> None:
        """Ask the workers to save and leave at the next step."""
        write_text(self.stop, str(signal_number))

    def stamp(self, event: str, since: float, when: float | None = None) -> None:
        """Note how long after the launch (``time.time()``) something happened; now, if nothing else is said."""
        seconds = (time.time() if when is None else when) - since
        with self.timeline.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "seconds": round(seconds, 3)}) + os.linesep)

    def ends(self) -> list[Path]:
        """Return the files in which workers have said how their attempt ended, by rank."""
        return sorted(self.path.glob("outcome-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))

    def tell_end(self, rank: int, error: Exception) -> None:
        """Leave word of how a worker's attempt ended, where another one would end alike."""
        told: dict[str, Any] = {"message": str(error)}
        if isinstance(error, StoppedError):
            told["signal"] = error.signal_number
        elif isinstance(error, ConfigError):
            told["faults"] = list(error.faults)
        write_json(self.path / f"outcome-{rank}.json", told)

    def raise_end(self) -> None:
        """Raise what the first worker said that left word.

        Raises:
            StoppedError: a request to stop was obeyed.
            GetaError: there is something that the user must put right.
        """
        for path in self.ends():
            told = json.loads(path.read_text(encoding="utf-8"))
            if "signal" in told:
                raise StoppedError(told["message"], told["signal"])
            raise ConfigError(told["faults"]) if "faults" in told else GetaError(told["message"])
