"""Where the numbers of a run go: JSON lines always, MLflow when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.tracking.base import Tracker
from orchestration.tracking.store import store_beside

if TYPE_CHECKING:
    from orchestration.config import Config


def store_uri(config: Config, folder: Path) -> str:
    """Return the MLflow store of a run: ``tracker.uri``, or a SQLite file beside the run directory."""
    return config.tracker.uri or store_beside(folder)


def open_trackers(config: Config, folder: Path) -> list[Tracker]:
    """Return the trackers that the configuration names; the JSON lines are written without them."""
    if config.tracker.name == "jsonl":
        return []
    from orchestration.tracking.mlflow import MlflowTracker

    name = f"{config.method.name}-{config.model.name}-{config.task.name}-s{config.run.seed}"
    if config.tracker.cell:  # the pages cut long names off, and the cell above says the rest
        name = f"seed {config.run.seed}"
    return [MlflowTracker(config.tracker, name, folder)]


def unfinished_trackers(config: Config, folder: Path) -> list[Tracker]:
    """Return the trackers of a complete run that have not seen its end."""
    from orchestration.tracking.intent import Intent, is_settled

    intent = Intent.read(folder)
    if intent is None:
        return []
    if is_settled(folder, intent) and intent.store(folder) == store_uri(config, folder):
        return []
    return open_trackers(config, folder)
