"""What a pool is, and what pools of this machine share."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sweeps.studies.attempts import Attempt, Attempts
from sweeps.studies.definition import Definition


class Pool(Protocol):
    """Starts attempts, and says which of them are gone.

    A coordinator may be a new process that has started none of the attempts it asks about: what a pool knows of them
    stands in files, in the processes of the machine, or with the scheduler.
    """

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Start attempts whose specifications are written.

        Raises:
            GetaError: when none can be started.
        """

    def gone(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Return those that neither run nor will, as far as can be known; what is known of their ends is published."""

    def stop(self, attempts: Sequence[Attempt], why: str) -> None:
        """Ask attempts to save and leave."""

    def close(self) -> None:
        """Leave; attempts that run go on where the pool can do without this process."""


class StudyPool:
    """What pools share: attempts are started from files, and stopped by word that their workers find.

    Args:
        definition: of the study.
    """

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._attempts = Attempts(definition.folder)

    def stop(self, attempts: Sequence[Attempt], why: str) -> None:
        """Leave word for the workers."""
        for attempt in attempts:
            self._attempts.ask_to_stop(attempt, why)


def worker_command(folder: Path, attempt: Attempt, parent: int | None = None) -> list[str]:
    """Return the command of a worker; with a parent, it dies with that process."""
    command = [sys.executable, "-m", "sweeps.studies.worker", str(folder), str(attempt.slot), str(attempt.number)]
    return command if parent is None else [*command, str(parent)]


def worker_environment(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a worker: our own code first, and as many threads as the run is given."""
    source = str(Path(__file__).resolve().parents[3])
    paths = [source, *(os.path.abspath(path) for path in sys.path[:1]), os.environ.get("PYTHONPATH", "")]
    threads = str(spec["config"]["run"]["threads"] or 1)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in dict.fromkeys(paths) if path),
        "OMP_NUM_THREADS": threads,
    }


def log_of(spec: Mapping[str, Any]) -> Path:
    """Return the file that takes a worker's messages, where `geta logs` looks; its folder is made."""
    folder = Path(spec["config"]["run"]["output"]) / "launcher"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "worker-0.log"
