"""``geta ui``: the MLflow pages of local runs, on the loopback address only."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from geta_core.errors import ConfigError, GetaError
from orchestration.console import guarded, write
from orchestration.rundir import DEFAULT_ROOT
from orchestration.tracking import DATABASE

HOST = "127.0.0.1"
START_SECONDS = 120.0


def main(arguments: Sequence[str]) -> int:
    """Serve the pages until the command is interrupted."""
    parser = argparse.ArgumentParser("geta ui", description="Show local runs in the browser (MLflow).")
    parser.add_argument(
        "folder", nargs="?", default=DEFAULT_ROOT, help=f"folder with {DATABASE} (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=5000, help="first port to try (default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    given = parser.parse_args(arguments)
    return guarded(lambda: serve(Path(given.folder), given.port, not given.no_browser))


def serve(folder: Path, first_port: int, browser: bool) -> int:
    """Start MLflow's server for one store and wait for it.

    Raises:
        ConfigError: when the folder holds no store.
        GetaError: when the server does not come up.
    """
    database = (folder / DATABASE).absolute()
    if not database.is_file():
        raise ConfigError([f"{database} does not exist; give the folder of your runs, or make some with `make demo`"])
    port = free_port(first_port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(database.parent / "mlartifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True)
    address = f"http://{HOST}:{port}"
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _wait(server, address)
        write(f"runs of {folder}: {address}   (Ctrl-C ends it)")
        if browser:
            webbrowser.open(address)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


def free_port(first: int) -> int:
    """Return the first port from here on that nobody listens on."""
    for port in range(first, min(first + 200, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise ConfigError([f"no free port between {first} and {first + 199}; give --port"])


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            raise GetaError(f"the MLflow server ended with code {server.returncode}; its messages stand above")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        time.sleep(0.2)
    raise GetaError(f"the MLflow server did not answer at {address} within {START_SECONDS:g} s")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
