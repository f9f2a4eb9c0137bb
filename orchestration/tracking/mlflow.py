"""Copies a run's numbers, pictures and artifact to MLflow, in a process of its own.

The training writes its journal and an intent (``mlflow.json``); the process started here sends them. Whatever goes
wrong there is reported once and never stops a training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from orchestration.signals import shielded
from orchestration.tracking.base import Line, Status, TrackerSettings
from orchestration.tracking.intent import Intent
from orchestration.tracking.store import QUIET

LOG = logging.getLogger(__name__)
LAST_SECONDS = 600.0
"""Seconds that a run waits at its end until everything is sent."""
STARTS = 3
"""Times that the sending process is started in one attempt."""


class MlflowTracker:
    """One MLflow run.

    Args:
        settings: store, experiment, cell and what is copied.
        name: of the run in MLflow.
        folder: the run directory.
    """

    def __init__(self, settings: TrackerSettings, name: str, folder: Path) -> None:
        self._folder = folder
        self._intent = Intent.of(settings, name, Intent.read(folder))
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def start(self, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Say what the copy is, and start to send."""
        self._write(parameters=dict(parameters), tags=dict(tags))
        self._spawn()

    def send(self, lines: Sequence[Line]) -> None:
        """See that somebody sends: the lines themselves are read from the journal."""
        if self._process is not None and self._process.poll() is not None and self._starts < STARTS:
            self._spawn()

    def files(self, paths: Sequence[Path]) -> None:
        """Have files and folders of the run directory copied when the run ends."""
        names = (path.relative_to(self._folder).as_posix() for path in paths)
        self._write(files=tuple(dict.fromkeys([*self._intent.files, *names])))

    def finish(self, status: Status) -> None:
        """Say how the run ended, and wait until everything is sent."""
        self._write(status=status)
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):  # it is gone: `geta sync` sends what is left
            _stream(process).write(b"end\n")
        self._hang_up()
        try:
            code = process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code < 0:
            LOG.warning("not everything has reached MLflow; `geta sync %s` sends the rest", self._folder)

    def _hang_up(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                _stream(self._process).close()

    def _spawn(self) -> None:
        """Start the sending process; it shares the error stream alone."""
        self._hang_up()
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", f"{__package__}.follow", str(self._folder)]
        self._starts += 1
        try:
            with shielded():
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
                )
        except OSError as error:
            LOG.warning("the process that sends to MLflow could not start (%s); the run goes on without it", error)

    def _write(self, **changes: Any) -> None:
        self._intent = replace(self._intent, **changes)
        try:
            self._intent.write(self._folder)
        except OSError as error:
            LOG.warning("%s could not be written (%s); the run goes on", self._folder, error.strerror)


def _stream(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # it was started with a pipe
    return process.stdin
