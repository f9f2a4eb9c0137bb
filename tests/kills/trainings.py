"""Trainings that are to be disturbed, and what must be true of them afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestration.cli_sync import main as sync
from orchestration.compose import compose
from orchestration.tracking.jsonl import Journal
from orchestration.values import write_yaml
from tests.orchestration.small import differences, outcome
from tests.orchestration.tracked import copies, history, written
from tests.orchestration.watched import Watched

ROOT = Path(__file__).resolve().parents[2]
TASK = "tests.kills.slow:SlowDigits"
STEPS = 120
SETTINGS = (
    "task=digits",
    "model=digits_cnn",
    "model.width=6",
    f"run.steps={STEPS}",
    "run.checkpoint_every=10",
    "run.threads=1",
    "run.device=cpu",
    "method.projection_periods=2",
    "method.pruning_periods=2",
    "method.activation_bits=[4,8]",
    "tracker=mlflow",
)


def resolved(
    folder: Path, name: str, *more: str, launcher: Mapping[str, Any] | None = None, place: Path | None = None
) -> Path:
    """Write the configuration of a training in the folder ``name``, a few seconds of sleep long.

    Args:
        folder: receives the configuration and what is printed.
        name: of both, and of the run directory.
        more: settings besides the usual ones.
        launcher: settings; local if not given.
        place: where the run directory shall be, if not in the same folder.
    """
    tree = compose([*SETTINGS, f"run.output={(place or folder) / name}", *more]).to_dict()
    tree["task"] = {"name": TASK, "batch_size": 32}
    tree["launcher"] = dict(launcher or {"name": "local"})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(write_yaml(tree), encoding="utf-8")
    return path


def start(config: Path) -> Watched:
    """Start a training, or let it go on."""
    return Watched(
        [sys.executable, "-m", "orchestration.run", "--config", str(config)], config.with_suffix(".log"), {}, ROOT
    )


def faults(run: Path, wanted: dict[str, Any], uri: str) -> list[str]:
    """Say in what a training that was disturbed differs from one that was not, and its copy from its journal.

    Everything that a training gives is compared bit for bit. Its copy must have each number once, after ``geta sync``
    was given twice.

    Args:
        run: its directory.
        wanted: what ``outcome`` says of the undisturbed one.
        uri: the MLflow store.
    """
    found = differences(wanted, outcome(run))
    for _ in range(2):
        if sync([str(run)]):
            found.append("geta sync did not send everything")
    own = [each for each in copies(uri) if each.data.tags["geta.directory"] == str(run)]
    if len(own) != 1:
        return [*found, f"{len(own)} copies in MLflow"]
    if own[0].info.status != "FINISHED":
        found.append(f"the copy is {own[0].info.status}")
    keys = {key for line in Journal(run).lines() if line.kind != "final" for key in (*line.metrics, *line.seconds)}
    for key in sorted(keys):
        sent, kept = history(uri, own[0], key), written(run, key)
        if sent != kept:
            found.append(f"{key}: {len(sent)} points in MLflow, {len(kept)} in the journal")
    return found


def store_of(folder: Path) -> str:
    """Return the SQLite store of a folder of runs."""
    return f"sqlite:///{folder / 'mlflow.db'}"
