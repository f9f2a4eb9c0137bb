"""``launcher=local``: each run in a process of this machine that outlives the coordinator."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from sweeps.studies.attempts import Attempt
from sweeps.studies.definition import Definition
from sweeps.studies.pools.base import StudyPool, log_of, worker_command, worker_environment


class LocalPool(StudyPool):
    """Processes.

    Args:
        definition: of the study.
    """

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self._started: dict[Attempt, subprocess.Popen[bytes]] = {}

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Start a process for each attempt, in a session of its own: an interrupt of the terminal is not for it."""
        for attempt in attempts:
            spec = self._attempts.spec(attempt)
            with log_of(spec).open("ab") as log:
                self._started[attempt] = subprocess.Popen(
                    worker_command(self._definition.folder, attempt),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=os.getcwd(),
                    env=worker_environment(spec),
                    start_new_session=True,
                )

    def gone(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Return those whose process has ended, and those that another process started and none has claimed."""
        found = []
        for attempt in attempts:
            own = self._started.get(attempt)
            if own is not None:
                if own.poll() is not None:
                    del self._started[attempt]
                    found.append(attempt)
            elif not self._attempts.lives(attempt):
                found.append(attempt)
        return found

    def close(self) -> None:
        """Collect the processes that have ended; the others go on."""
        for process in self._started.values():
            process.poll()
