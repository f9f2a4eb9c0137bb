"""Copies a run's numbers, pictures and artifact to MLflow.

Whatever goes wrong there is reported once and never stops a training. The run's identity is kept in the run directory,
so that a resumed run goes on in the same MLflow run; sending a number again with the same step, time and value does not
count twice in the store.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestration.files import write_json
from orchestration.tracking.base import Line, Status, TrackerSettings

LOG = logging.getLogger(__name__)
SEND_EVERY = 5.0
"""Seconds between batches of numbers: a tracker must not take a noticeable share of a run."""
RETRY_AFTER = 60.0
"""Seconds for which a store that failed is left alone."""
METRICS_PER_BATCH, PARAMETERS_PER_BATCH = 1000, 100
"""What MLflow takes in one call."""
STATE_FILE = "mlflow.json"
TOKEN_TAG = "geta.token"


class MlflowTracker:
    """One MLflow run.

    Args:
        settings: experiment and what is copied.
        uri: of the store.
        name: of the run in MLflow.
        folder: the run directory.
    """

    def __init__(self, settings: TrackerSettings, uri: str, name: str, folder: Path) -> None:
        self._settings, self._uri, self._name = settings, uri, name
        self._state_file = folder / STATE_FILE
        self._client: Any = None
        self._run_id = ""
        self._pending: list[Line] = []
        self._sent_at = 0.0
        self._pause_until = 0.0
        self._about: tuple[Mapping[str, Any], Mapping[str, str]] = ({}, {})

    def start(self, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Create the MLflow run, or go on with the one that the run directory names."""
        self._about = (parameters, tags)
        self._guard(self._connect)

    def send(self, lines: Sequence[Line]) -> None:
        """Copy lines, in batches every few seconds."""
        self._pending.extend(lines)
        if time.monotonic() - self._sent_at >= SEND_EVERY:
            self._guard(self._flush)

    def files(self, paths: Sequence[Path], folder: str = "") -> None:
        """Copy files or folders as artifacts of the run."""

        def copy() -> None:
            self._connect()
            for path in paths:
                if path.is_dir():
                    self._client.log_artifacts(self._run_id, str(path), f"{folder}/{path.name}".lstrip("/"))
                else:
                    self._client.log_artifact(self._run_id, str(path), folder or None)

        self._guard(copy)

    def finish(self, status: Status) -> None:
        """Send what is left and close the run."""

        def close() -> None:
            self._flush()
            self._client.set_terminated(self._run_id, status)
            self._write_state(status)

        self._pause_until = 0.0  # this is the last chance
        self._guard(close)

    def _guard(self, action: Callable[[], None]) -> None:
        if time.monotonic() < self._pause_until:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - no failure of a tracker may end a training
            self._pause_until = time.monotonic() + RETRY_AFTER
            self._client = None
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            LOG.warning("the MLflow store %s does not answer (%s); the run goes on without it", self._uri, text)

    def _connect(self) -> None:
        if self._client is not None:
            return
        client, experiment = open_store(self._uri, self._settings.experiment)
        state = read_state(self._state_file)
        if state.get("uri") != self._uri:
            state = {"uri": self._uri, "token": uuid.uuid4().hex}
            write_json(self._state_file, state)
        token = state["token"]
        # The token was on disk before the run existed: a process that was killed in between left a run to be found.
        found = client.search_runs([experiment], f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {**self._about[1], TOKEN_TAG: token}
            self._run_id = client.create_run(experiment, tags=tags, run_name=self._name).info.run_id
            self._send_parameters(client)
        self._client = client
        self._write_state("RUNNING")

    def _send_parameters(self, client: Any) -> None:
        from mlflow.entities import Param

        values = [Param(key, str(value)[:6000]) for key, value in self._about[0].items()]
        for start in range(0, len(values), PARAMETERS_PER_BATCH):
            client.log_batch(self._run_id, params=values[start : start + PARAMETERS_PER_BATCH])

    def _flush(self) -> None:
        from mlflow.entities import Metric

        self._connect()
        lines = list(self._pending)
        metrics = [
            Metric(key, float(value), line.time, line.step)
            for line in lines
            for key, value in {**line.metrics, **line.seconds}.items()
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
        del self._pending[: len(lines)]
        self._sent_at = time.monotonic()

    def _write_state(self, status: str) -> None:
        state = read_state(self._state_file)
        write_json(self._state_file, {**state, "run_id": self._run_id, "status": status})


def read_state(path: Path) -> dict[str, Any]:
    """Return what ``mlflow.json`` says about a run's copy in MLflow: uri, token, run_id, status."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def open_store(uri: str, experiment: str) -> tuple[Any, str]:
    """Connect to a store and make the experiment if it is new.

    Returns:
        The client and the experiment's id.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    with sqlite_lock(uri) as database:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return client, found.experiment_id
        place = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return client, client.create_experiment(experiment, artifact_location=place)
        except MlflowException:  # another process on another machine was faster
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
            return client, found.experiment_id


@contextmanager
def sqlite_lock(uri: str) -> Iterator[Path | None]:
    """Let one process at a time open a SQLite store: a new file is given its tables by whoever opens it first.

    Yields:
        The database file, or None for another kind of store.
    """
    database = sqlite_path(uri)
    if database is None:
        yield None
        return
    import fcntl

    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(database.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield database


def sqlite_path(uri: str) -> Path | None:
    """Return the file of ``sqlite:///relative`` or ``sqlite:////absolute``; None for another kind of store."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path.removeprefix("/"))).absolute() if parts.scheme == "sqlite" else None
