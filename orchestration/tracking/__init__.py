"""Where the numbers of a run go: JSON lines always, MLflow when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.tracking.base import Tracker

if TYPE_CHECKING:
    from orchestration.config import Config

DATABASE = "mlflow.db"


def store_uri(config: Config, folder: Path) -> str:
    """Return the MLflow store of a run: ``tracker.uri``, or a SQLite file beside the run directory."""
    return config.tracker.uri or f"sqlite:///{folder.parent / DATABASE}"


def open_trackers(config: Config, folder: Path) -> list[Tracker]:
    """Return the trackers that the configuration names; the JSON lines are written without them."""
    if config.tracker.name == "jsonl":
        return []
    from orchestration.tracking.mlflow import MlflowTracker

    name = f"{config.method.name}-{config.model.name}-{config.task.name}-s{config.run.seed}"
    return [MlflowTracker(config.tracker, store_uri(config, folder), name, folder)]


def unfinished_trackers(config: Config, folder: Path) -> list[Tracker]:
    """Return the trackers of a complete run that have not seen its end."""
    from orchestration.tracking.mlflow import STATE_FILE, read_state

    state = read_state(folder / STATE_FILE)
    if not state or (state.get("status"), state.get("uri")) == ("FINISHED", store_uri(config, folder)):
        return []
    return open_trackers(config, folder)
