"""What a run directory says about its copy in MLflow.

``mlflow.json`` is the intent: where the copy belongs and what it holds besides the journal. The run alone writes it.
``mlflow.sent.json`` is the receipt of whoever sends, written when the store has everything. With these two and the
journal any process can bring the copy up to date at any time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from orchestration.files import read_object, write_json
from orchestration.owner import alive
from orchestration.tracking.base import Status, TrackerSettings
from orchestration.tracking.store import store_beside

INTENT, RECEIPT, SENDER = "mlflow.json", "mlflow.sent.json", ".mlflow.lock"
"""Files in the run directory; the last is the lock of the one process that sends."""
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Intent:
    """The copy of one run in MLflow."""

    uri: str | None
    """Of the store; None is the file beside the run directory, also after both were moved."""
    experiment: str
    cell: str | None
    name: str
    """Of the run in MLflow."""
    token: str
    """Tag by which the copy is found; it is on disk before the copy exists, so that no copy is made twice."""
    started: int
    """Milliseconds since 1970."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Files and folders to copy, relative to the run directory."""
    status: Status | None = None
    """How the last attempt ended; None while it runs, and when it died without a word."""

    @classmethod
    def read(cls, folder: Path) -> Intent | None:
        """Return what a run directory says; None where it says nothing (whole)."""
        values = read_object(folder / INTENT)
        try:
            found = cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})
        except TypeError:
            return None
        return found

    @classmethod
    def of(cls, settings: TrackerSettings, name: str, before: Intent | None) -> Intent:
        """Return the intent of a new attempt; it goes on with the copy of the one before in the same place."""
        same = before is not None and (before.uri, before.experiment) == (settings.uri, settings.experiment)
        return cls(
            uri=settings.uri,
            experiment=settings.experiment,
            cell=settings.cell,
            name=name,
            token=before.token if before is not None and same else uuid.uuid4().hex,
            started=before.started if before is not None and same else time.time_ns() // 1_000_000,
            files=tuple(before.files) if before is not None else (),
        )

    def write(self, folder: Path) -> None:
        """Write it at once."""
        write_json(folder / INTENT, asdict(self))

    def store(self, folder: Path) -> str:
        """Return the address of the store."""
        return self.uri or store_beside(folder)


def wanted_status(folder: Path, intent: Intent) -> Status | None:
    """Return what the copy's status should be; None while a process runs in the directory."""
    if alive(folder):
        return None
    if (folder / RESULT).is_file():
        return "FINISHED"
    return intent.status or "KILLED"


def receipt(folder: Path) -> dict[str, Any]:
    """Return what was last confirmed: run_id, store, status."""
    return read_object(folder / RECEIPT)


def is_settled(folder: Path, intent: Intent) -> bool:
    """Whether the copy was complete once and nothing has happened since."""
    confirmed = receipt(folder)
    status = "FINISHED" if (folder / RESULT).is_file() else intent.status or "KILLED"
    return (confirmed.get("store"), confirmed.get("token"), confirmed.get("status")) == (
        intent.store(folder),
        intent.token,
        status,
    )
