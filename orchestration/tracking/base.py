"""What a tracker is, and its settings.

The JSON lines in the run directory are the truth; a tracker is a copy of them somewhere else. Its failures are
reported and never stop a training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """Where the numbers go besides ``metrics.jsonl``."""

    name: Literal["mlflow", "jsonl"] = "mlflow"
    """mlflow: an MLflow store; jsonl: the run directory alone."""
    uri: str | None = None
    """MLflow store or server; null means the file mlflow.db in the folder that holds the run directory."""
    experiment: str = "geta"
    """MLflow experiment that the run belongs to."""
    log_artifact: bool = True
    """Whether the compressed model is copied to the tracker as well."""


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
        """Copy lines; the same line sent twice must count once."""

    def files(self, paths: Sequence[Path], folder: str = "") -> None:
        """Copy files or folders."""

    def finish(self, status: Status) -> None:
        """Send what is left and close the run."""
