"""``geta ui``: the MLflow pages of runs, on the loopback address only."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from geta_core.errors import ConfigError, GetaError
from orchestration.console import Parser, guarded, write
from orchestration.services.processes import SERVER, answers, end_group, free_port, mlflow_command, wait_for
from orchestration.services.settings import HOST
from orchestration.tracking.base import uri_faults
from orchestration.tracking.intent import Intent
from orchestration.tracking.store import ARTIFACTS, DATABASE, is_server, sqlite_path
from orchestration.tracking.sync import run_folders
from orchestration.tracking.views import studies, view_address

DEFAULT_ROOT = "runs"
DESCRIPTION = f"""\
Show runs in the browser. A folder with {DATABASE} is served on {HOST} until the command is interrupted; where the runs
went to a server, its address is shown.
"""


def main(arguments: Sequence[str]) -> int:
    """Serve the pages until the command is interrupted."""
    parser = Parser("geta ui", description=DESCRIPTION)
    parser.add_argument("folder", nargs="?", default=DEFAULT_ROOT, help="folder of runs (default: %(default)s)")
    parser.add_argument("--uri", help="another store, as tracker.uri names it: a server, SQLite file or PostgreSQL")
    parser.add_argument("--port", type=_port, default=5000, help="first port to try (default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    given = parser.parse_args(arguments)
    return guarded(lambda: _main(Path(given.folder), given.uri, given.port, not given.no_browser))


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number in 1 .. 65535, but got {text}")
    return int(text)


def _main(folder: Path, uri: str | None, port: int, browser: bool) -> int:
    store = uri if uri is not None else find_store(folder)
    faults = [fault.replace("tracker.uri", "--uri") for fault in uri_faults(store)]
    if faults:
        raise ConfigError(faults)
    database = sqlite_path(store)
    if database is not None and not database.is_file():
        raise ConfigError([f"{database} does not exist; give the folder of your runs, or make some with `make demo`"])
    return show_server(store, browser) if is_server(store) else serve(store, port, browser)


def find_store(folder: Path) -> str:
    """Return the store of a folder of runs: its SQLite file, else where its runs went.

    Raises:
        ConfigError: when the runs went to several places.
    """
    database = (folder / DATABASE).absolute()
    if not database.is_file():
        stores = {intent.store(each) for each in run_folders(folder.absolute()) if (intent := Intent.read(each))}
        if len(stores) > 1:
            raise ConfigError(
                [f"the runs in {folder} went to several stores; choose one with --uri: {', '.join(stores)}"]
            )
        if stores:
            return stores.pop()
    return f"sqlite:///{database}"


def show_server(address: str, browser: bool) -> int:
    """Say where a running server's pages are.

    Raises:
        GetaError: when it does not answer.
    """
    if not answers(address):
        raise GetaError(f"the MLflow server {address} does not answer; a team's is started with `geta services up`")
    write(f"runs: {address}")
    show_studies(address)
    if browser:
        webbrowser.open(address)
    return 0


def show_studies(address: str) -> None:
    """Say where the table and the charts of each study are."""
    with contextlib.suppress(OSError, ValueError, KeyError):  # a server that wants a login shows its own pages
        for name, number in studies(address):
            write(f"  {name}: {view_address(address, number)}")
            write(f"  {' ' * len(name)}  {view_address(address, number, charts=True)}")


def serve(store: str, first_port: int, browser: bool) -> int:
    """Start MLflow's server for one store and wait for it.

    Raises:
        GetaError: when the server does not come up.
    """
    port = free_port(first_port)
    database = sqlite_path(store)
    artifacts = database.parent / ARTIFACTS if database is not None else None
    command = mlflow_command(store, port, 1, artifacts)
    server = subprocess.Popen(command, env={**os.environ, **SERVER}, start_new_session=True)
    address = f"http://{HOST}:{port}"
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        wait_for(address, server.poll)
        write(f"runs of {database.parent if database is not None else store}: {address}   (Ctrl-C ends it)")
        show_studies(address)
        if browser:
            webbrowser.open(address)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        end_group(server.pid)
        server.wait(timeout=20)
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
