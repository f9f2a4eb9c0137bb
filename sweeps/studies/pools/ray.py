"""``launcher=ray``: each run as a task of one Ray cluster, through a process that outlives the coordinator.

This process imports no Ray. A server process per study (``ray_server``) brings up Ray, or joins the cluster at
``launcher.address``, and takes its work from a folder: the coordinator puts a mark there for each attempt, the server
takes the mark away when the attempt's task is over. A task does what a local run does: it starts a worker and waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from baselines.schema import plain
from geta_core.errors import GetaError
from orchestration.files import write_json, write_text
from orchestration.owner import alive
from sweeps.studies.attempts import Attempt
from sweeps.studies.definition import Definition
from sweeps.studies.pools.base import StudyPool

FOLDER, SETTINGS, STOP, LOG = ".ray", "settings.json", "stop", "server.log"
TRIES = 3
"""Servers in a row that may end before their Ray was up."""
LINGERS = 60.0
"""Seconds that Ray gets to shut down."""
UP = "up"
"""File that says which server's Ray is up."""


class RayPool(StudyPool):
    """Tasks of a Ray cluster.

    Args:
        definition: of the study.
    """

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self._folder = definition.folder / FOLDER
        self._server: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Put attempts where the server finds them."""
        self._folder.mkdir(exist_ok=True)
        self._tend()
        for attempt in attempts:
            write_text(self._mark(attempt), "")

    def gone(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Return those whose task is over."""
        self._tend()
        return [attempt for attempt in attempts if not self._mark(attempt).exists()]

    def close(self) -> None:
        """Let the server end Ray once no task is left."""
        if self._folder.is_dir():
            write_text(self._folder / STOP, "")
        if self._server is not None:
            self._server.wait()
        until = time.monotonic() + LINGERS  # one that an earlier coordinator started is no child of this process
        while alive(self._folder) and time.monotonic() < until:
            time.sleep(0.2)

    def _mark(self, attempt: Attempt) -> Path:
        return self._folder / f"{attempt}.task"

    def _tend(self) -> None:
        """Start the server where none runs.

        Raises:
            GetaError: when Ray does not come up.
        """
        ended = self._server is not None and self._server.poll() is not None
        if (self._server is not None and not ended) or alive(self._folder):
            return
        if ended:
            self._server = None
            self._starts = 0 if (self._folder / UP).exists() else self._starts
        if self._starts >= TRIES:
            log = self._folder / LOG
            lines = log.read_text(errors="replace").strip().splitlines() or [""]
            raise GetaError(f"Ray did not come up {TRIES} times: {lines[-1][:300]}; {log} says more")
        self._starts += 1
        for name in (STOP, UP):
            (self._folder / name).unlink(missing_ok=True)
        settings = {
            "launcher": plain(asdict(self._definition.launcher)),
            "parallel": self._definition.settings.parallel,
            "cwd": os.getcwd(),
            "began": time.time(),
        }
        write_json(self._folder / SETTINGS, settings)
        with (self._folder / LOG).open("ab") as log_file:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "sweeps.studies.pools.ray_server", str(self._definition.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                env={**os.environ, "PYTHONPATH": _source_path()},
                start_new_session=True,
            )


def _source_path() -> str:
    source = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))


def settings_of(folder: Path) -> dict[str, object]:
    """Return what the server of a study was told."""
    found: dict[str, object] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return found
