"""Servers in the background: started once, found again by a file that names them, ended with their children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from geta_core.errors import ConfigError, GetaError
from orchestration.files import write_json
from orchestration.owner import process_lives
from orchestration.services.settings import HOST
from orchestration.tracking.store import QUIET

START_SECONDS, STOP_SECONDS = 180.0, 20.0
SERVER = {**QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONUNBUFFERED": "1"}
"""Environment of MLflow's server: no extra processes, nothing sent anywhere."""


def mlflow_command(store: str, port: int, workers: int, artifacts: Path | None) -> list[str]:
    """Return the command of an MLflow server on loopback.

    Args:
        store: its database, without a password.
        port: where it listens.
        workers: processes that answer.
        artifacts: where files go that clients send; None keeps what the store says.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", str(workers), "--backend-store-uri", store]
    return [*command, "--artifacts-destination", str(artifacts)] if artifacts is not None else command


def wait_for(address: str, returncode: Callable[[], int | None], seconds: float = START_SECONDS) -> None:
    """Wait until a server answers.

    Raises:
        GetaError: when it ends before, or does not answer in time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        code = returncode()
        if code is not None:
            raise GetaError(f"the MLflow server ended with code {code}; its messages say why")
        if answers(address):
            return
        time.sleep(0.2)
    raise GetaError(f"the MLflow server did not answer at {address} within {seconds:g} s")


def answers(address: str) -> bool:
    """Whether an MLflow server answers at an address."""
    with contextlib.suppress(urllib.error.URLError, OSError, ValueError):
        urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=5).close()
        return True
    return False


def free_port(first: int) -> int:
    """Return the first port from here on that nobody listens on."""
    for port in range(first, min(first + 200, 65536)):
        if is_free(port):
            return port
    raise ConfigError([f"no free port between {first} and {first + 199}; give --port"])


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class Background:
    """A server that outlives the command that starts it.

    Args:
        record: file that names the process.
        log: file that takes its messages.
    """

    def __init__(self, record: Path, log: Path) -> None:
        self._record, self._log = record, log

    def pid(self) -> int | None:
        """Return the number of the process, if it runs."""
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
            pid, since = int(found["pid"]), float(found["time"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if process_lives(pid, since) else None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start the process in a session of its own."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment},
                start_new_session=True, cwd=self._log.parent,
            )  # fmt: skip
        write_json(self._record, {"pid": process.pid, "time": time.time()})
        return process

    def stop(self) -> bool:
        """End the process and its children; return whether there was one."""
        pid = self.pid()
        if pid is not None:
            end_group(pid)
        self._record.unlink(missing_ok=True)
        return pid is not None


def end_group(pid: int, seconds: float = STOP_SECONDS) -> None:
    """End every process of a session: politely, then for certain."""
    import psutil

    members = []
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        members = [leader, *leader.children(recursive=True)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=seconds)
    for each in alive:
        with contextlib.suppress(psutil.Error):
            each.kill()
    psutil.wait_procs(alive, timeout=seconds)
