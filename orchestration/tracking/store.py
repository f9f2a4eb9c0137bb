"""Opens MLflow stores: tables made or migrated once, one process at a time, and settings that suit a training."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from geta_core.errors import GetaError
from orchestration.files import PARTIAL, sync_folder

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # whoever sends numbers tries again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Environment of processes that talk to a store."""


def open_store(uri: str, experiment: str) -> tuple[Any, str]:
    """Connect to a store and make the experiment if it is new.

    A new SQLite file is given its tables by whoever opens it first, and one of an older MLflow is brought up to date,
    under a lock; a server does that itself.

    Args:
        uri: of a server (http, https) or a database.
        experiment: its name.

    Returns:
        The client and the experiment's id.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    with sqlite_lock(uri) as database:
        if database is not None and not database.exists():
            _make_tables(database)
        elif database is not None:
            _migrate_tables(database)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return client, found.experiment_id
        place = (database.parent / ARTIFACTS).as_uri() if database else None
        try:
            return client, client.create_experiment(experiment, artifact_location=place)
        except MlflowException:  # another process on another machine was faster
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
            return client, found.experiment_id


def _make_tables(database: Path) -> None:
    """Make a new SQLite store beside its place and move it there: half made, it could never be opened again."""
    from mlflow.tracking import MlflowClient

    partial = database.with_name(database.name + PARTIAL)
    for each in (partial, partial.with_name(partial.name + "-journal")):
        each.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{partial}")
    os.replace(partial, database)
    sync_folder(database.parent)


def _migrate_tables(database: Path) -> None:
    """Bring the tables that an older MLflow made up to date, beside their place; the old file stays as a copy."""
    import sqlite3

    try:
        from mlflow.store.db.utils import _get_latest_schema_revision
    except ImportError:  # another version's place for it: MLflow itself says what is to be done
        return
    latest = str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as old:
        try:
            versions = [row[0] for row in old.execute("select version_num from alembic_version")]
        except sqlite3.OperationalError:  # no store of MLflow's, or locked: MLflow itself says so
            return
        if versions == [latest]:
            return
        partial = database.with_name(database.name + PARTIAL)
        partial.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(partial)) as new:
            old.backup(new)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{partial}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GetaError(
            f"the tables of {database} must be those of MLflow's version here, but could not be brought up to date: "
            f"{' '.join(done.stderr.split())[-300:]}"
        )
    shutil.copy2(database, database.with_name(f"{database.name}.before-{latest}"))
    os.replace(partial, database)
    sync_folder(database.parent)


@contextmanager
def sqlite_lock(uri: str) -> Iterator[Path | None]:
    """Let one process at a time make or migrate the tables of a SQLite store.

    Yields:
        The database file, or None for another kind of store.
    """
    database = sqlite_path(uri)
    if database is None:
        yield None
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.with_name(database.name + ".lock")):
        yield database


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Wait for a lock file and hold it; it is freed when this process ends, however it ends."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sqlite_path(uri: str) -> Path | None:
    """Return the file of ``sqlite:///relative`` or ``sqlite:////absolute``; None for another kind of store."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path.removeprefix("/"))).absolute() if parts.scheme == "sqlite" else None


def store_beside(folder: Path) -> str:
    """Return the SQLite store of the folder that holds a run directory."""
    return f"sqlite:///{folder.absolute().parent / DATABASE}"


def is_server(uri: str) -> bool:
    """Whether an address is that of an MLflow server."""
    return urlsplit(uri).scheme in ("http", "https")
