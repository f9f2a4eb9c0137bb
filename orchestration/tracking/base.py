"""What a tracker is, and its settings.

The JSON lines in the run directory are the truth; a tracker is a copy of them somewhere else. Its failures are
reported and never stop a training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from geta_core.errors import ConfigError

SERVERS, DATABASES = ("http", "https"), ("sqlite", "postgresql", "mysql")


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """Where the numbers go besides ``metrics.jsonl``."""

    name: Literal["mlflow", "jsonl"] = "mlflow"
    """mlflow: an MLflow store; jsonl: the run directory alone."""
    uri: str | None = None
    """MLflow store or server; null means the file mlflow.db in the folder that holds the run directory."""
    experiment: str = "geta"
    """MLflow experiment that the run belongs to: the study."""
    cell: str | None = None
    """Names the runs that differ in their seed alone; they become children of one MLflow run of this name."""
    log_artifact: bool = True
    """Whether the compressed model is copied to the tracker as well."""

    def __post_init__(self) -> None:
        faults = uri_faults(self.uri) if self.uri is not None else []
        if not self.experiment.strip():
            faults.append("tracker.experiment must not be empty")
        if self.cell is not None and not (self.cell.strip() and {*"'`"}.isdisjoint(self.cell)):
            faults.append(f"tracker.cell must be a name without quotes, but got {self.cell!r}")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class Line:
    """One line of ``metrics.jsonl``: some numbers at one step.

    Attributes:
        kind: "epoch", "stage" or "final".
        step: optimizer steps done.
        epoch: epochs done, the unfinished one not counted.
        stage: name of the stage that the numbers belong to.
        time: milliseconds since 1970, the timestamp that trackers are sent.
        metrics: the numbers.
        seconds: wall-clock numbers; they differ from one execution to the next.
    """

    kind: str
    step: int
    epoch: int
    stage: str
    time: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what is written to the file."""
        return {
            "kind": self.kind,
            "step": self.step,
            "epoch": self.epoch,
            "stage": self.stage,
            "time": self.time,
            "metrics": dict(self.metrics),
            "seconds": dict(self.seconds),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Line:
        """Return the line that was written."""
        return cls(**values)


Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """A copy of a run's numbers, pictures and files in another place."""

    def start(self, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Create the run there, or go on with the one that the run directory names."""

    def send(self, lines: Sequence[Line]) -> None:
        """Copy lines of the journal; the same line sent twice must count once."""

    def files(self, paths: Sequence[Path]) -> None:
        """Copy files and folders of the run directory."""

    def finish(self, status: Status) -> None:
        """Send what is left and close the run."""


def uri_faults(uri: str) -> list[str]:
    """Say what is wrong with the address of a store; a password in it is never repeated."""
    try:
        parts = urlsplit(uri)
        password = parts.password
    except ValueError as error:
        return [f"tracker.uri is no address: {error}"]
    if password is not None or "password=" in parts.query.lower():
        return [
            "tracker.uri must not hold a password, since records and pages show it; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD for a server, PGPASSFILE for PostgreSQL"
        ]
    scheme = parts.scheme.partition("+")[0]
    if scheme not in (*SERVERS, *DATABASES):
        known = "http://HOST:PORT of a server, sqlite:///FILE or postgresql://USER@HOST:PORT/DATABASE"
        return [f"tracker.uri must be {known}, but got {uri!r}"]
    if scheme in SERVERS and not parts.hostname:
        return [f"tracker.uri must name a host, but got {uri!r}"]
    return []
