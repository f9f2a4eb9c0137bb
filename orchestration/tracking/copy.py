"""Brings the copy of one run in MLflow up to date with its run directory; doing it twice changes nothing.

A number sent again with the same key, step, time and value is one row in the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from geta_core.errors import GetaError
from orchestration.files import write_json
from orchestration.tracking.base import Line, Status
from orchestration.tracking.cells import CELL, LEVEL, parent_of
from orchestration.tracking.intent import RECEIPT, RESULT, Intent
from orchestration.tracking.jsonl import JOURNAL, Tail
from orchestration.tracking.store import open_store
from orchestration.tracking.system import SYSTEM
from orchestration.tracking.views import set_view

TOKEN, STAGE, RECEIVED, FILES = "geta.token", "geta.stage", "geta.received", "geta.files"
"""Tags of a run: its identity, its stage, and what of journal and files has arrived."""
METRICS_PER_BATCH, PARAMETERS_PER_BATCH = 1000, 100
"""What MLflow takes in one call."""
TEXT = 6000
"""Characters of a parameter."""


class RunCopy:
    """One run in MLflow, as seen by the one process that sends it.

    Args:
        folder: the run directory.

    Raises:
        GetaError: when the directory does not say where its copy belongs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._intent = self._read()
        self._store = self._intent.store(folder)
        self._client: Any = None
        self._run_id = ""
        self._tails = (Tail(folder / JOURNAL), Tail(folder / SYSTEM))
        self._pending: list[Line] = []
        self._last = self._intent.started
        self._stage = ""

    def _read(self) -> Intent:
        intent = Intent.read(self._folder)
        if intent is None:
            raise GetaError(f"{self._folder} does not say where its copy in MLflow belongs")
        return intent

    def connect(self) -> Any:
        """Find the copy, or make it, and return what the store knows of it."""
        if self._client is None:
            client, experiment = open_store(self._store, self._intent.experiment)
            set_view(client, experiment)
            self._run_id = self._find(client, experiment) or self._create(client, experiment)
            self._client = client
        return self._client.get_run(self._run_id)

    def update(self) -> int:
        """Send what was added to the journal since the last time.

        Returns:
            The number of lines.
        """
        for tail in self._tails:
            self._pending.extend(tail.read())
        if self._client is None:
            self.connect()
        sending = list(self._pending)
        if sending:
            self._send(sending)
            del self._pending[: len(sending)]
        return len(sending)

    def open(self) -> None:
        """Say that the run runs."""
        self.connect()
        self._client.update_run(self._run_id, status="RUNNING")

    def close(self, status: Status) -> int:
        """Send everything that is left, and the end; what has arrived before is not sent again.

        Returns:
            The number of lines and files that were sent.
        """
        self._intent = self._read()  # the run has added files, and its end
        known = self.connect()
        for tail in self._tails:
            self._pending.extend(tail.read())
        mark, files = self._mark(), _digest(self._files())
        new = 0 if known.data.tags.get(RECEIVED) == mark else self.update()
        self._pending.clear()
        if known.data.tags.get(FILES) != files:
            new += self._copy_files()
        if new or known.info.status != status:
            self._client.set_tag(self._run_id, RECEIVED, mark)
            self._client.set_tag(self._run_id, FILES, files)
            self._client.set_terminated(self._run_id, status, self._last)
        confirmed = {"store": self._store, "token": self._intent.token, "run_id": self._run_id, "status": status}
        write_json(self._folder / RECEIPT, confirmed)
        return new

    def _find(self, client: Any, experiment: str) -> str:
        found = client.search_runs([experiment], f"tags.`{TOKEN}` = '{self._intent.token}'", max_results=1)
        if not found:
            return ""
        self._send_parameters(client, found[0].info.run_id, found[0].data.params)
        return str(found[0].info.run_id)

    def _create(self, client: Any, experiment: str) -> str:
        intent = self._intent
        tags = {**intent.tags, TOKEN: intent.token, LEVEL: "seed"}
        if intent.cell is not None:
            parent = parent_of(client, experiment, intent.cell, intent.tags)
            tags |= {CELL: intent.cell, "mlflow.parentRunId": parent}
        made = client.create_run(experiment, start_time=intent.started, tags=tags, run_name=intent.name)
        self._send_parameters(client, made.info.run_id, {})
        return str(made.info.run_id)

    def _send_parameters(self, client: Any, run_id: str, known: Any) -> None:
        """Send the parameters that are not there yet: those that are there cannot be changed."""
        from mlflow.entities import Param

        values = [Param(key, str(value)[:TEXT]) for key, value in self._intent.parameters.items() if key not in known]
        for start in range(0, len(values), PARAMETERS_PER_BATCH):
            client.log_batch(run_id, params=values[start : start + PARAMETERS_PER_BATCH])

    def _send(self, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric, RunTag

        # MLflow draws bars, which compare runs, of metrics that have one value at step 0.
        metrics = [
            Metric(key, float(value), line.time, 0 if line.kind == "final" else line.step)
            for line in lines
            for key, value in {**line.metrics, **line.seconds}.items()
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
        self._last = max(self._last, *(line.time for line in lines))
        stages = [line.stage for line in lines if line.stage]
        if stages and stages[-1] != self._stage:
            self._stage = stages[-1]
            self._client.log_batch(self._run_id, tags=[RunTag(STAGE, self._stage)])

    def _mark(self) -> str:
        """Name what the journal holds."""
        last = max((line.time for line in self._pending), default=self._last)
        self._last = max(self._last, last)
        return "+".join(str(tail.count) for tail in self._tails) + f"@{self._last}"

    def _files(self) -> list[Path]:
        named = [self._folder / name for name in (*self._intent.files, RESULT)]
        return [path for path in dict.fromkeys(named) if path.exists()]

    def _copy_files(self) -> int:
        paths = self._files()
        for path in paths:
            place = path.relative_to(self._folder).parent.as_posix().removeprefix(".")
            if path.is_dir():
                self._client.log_artifacts(self._run_id, str(path), f"{place}/{path.name}".lstrip("/"))
            else:
                self._client.log_artifact(self._run_id, str(path), place or None)
        return len(paths)


def _digest(paths: Sequence[Path]) -> str:
    """Name the content of files by their names, sizes and times."""

    def every() -> Iterator[str]:
        for path in paths:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                about = file.stat()
                yield f"{file.name}:{about.st_size}:{about.st_mtime_ns}"

    return hashlib.sha256("\n".join(every()).encode()).hexdigest()[:16]
