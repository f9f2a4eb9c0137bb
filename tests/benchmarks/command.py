"""Start-up of the command line, and the tracker's share of a run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.bounds import Row, row
from tests.benchmarks.clock import Spread

ROOT = Path(__file__).resolve().parents[2]
EPOCH_LINES = 30
CIFAR_STEPS = 45_000 // 64


def help_row(times: int = 5) -> Row:
    """Time ``geta --help`` in a fresh process."""
    code = "import sys; from sweeps.cli import main; sys.exit(main(['--help']))"
    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - started)
    return row("start", "geta --help", "start-up, wall", Spread.of(taken[1:]), device="cpu", unit="s")


def tracking_row(step_seconds: float | None) -> Row:
    """Return the share of an epoch (CIFAR-10, ResNet20, batch 64) that its numbers take in MLflow.

    The cost of an epoch's line is measured on a real SQLite store; the length of the epoch is the measured step time
    with QASSO times the number of steps. What a run pays once (import, creating the store) is in the note.

    Args:
        step_seconds: of one training step, None where it was not measured.
    """
    text = "MLflow / epoch of CIFAR-10, ResNet20"
    if step_seconds is None or importlib.util.find_spec("mlflow") is None:
        reason = "MLflow is not installed" if step_seconds is not None else "needs the step time of resnet20"
        return row("tracking", "resnet20", text, None, device="cpu", unit="share", note=reason)
    start, lines = _mlflow_seconds()
    epoch = step_seconds * CIFAR_STEPS
    spread = Spread.of([line / epoch for line in lines])
    note = f"{Spread.of(lines).median * 1e3:.1f} ms per epoch of {epoch:.0f} s, once per run {start:.1f} s"
    return row("tracking", "resnet20", text, spread, device="cpu", unit="share", note=note)


def _mlflow_seconds() -> tuple[float, list[float]]:
    """Return the seconds that a run pays once, and those of each epoch's line, sent at once."""
    from orchestration.tracking import mlflow
    from orchestration.tracking.base import Line, TrackerSettings

    metrics = {f"metric/{number}": 0.5 for number in range(15)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        tracker = mlflow.MlflowTracker(TrackerSettings(), f"sqlite:///{folder}/mlflow.db", "benchmark", folder)
        tracker.start({f"key{number}": number for number in range(60)}, {})
        start = time.perf_counter() - started
        taken = []
        for number in range(EPOCH_LINES):
            line = Line("epoch", number, number, "joint", 1_700_000_000_000 + number, metrics)
            tracker._sent_at = 0.0  # an epoch takes longer than the pause between two batches
            started = time.perf_counter()
            tracker.send([line])
            taken.append(time.perf_counter() - started)
        started = time.perf_counter()
        tracker.finish("FINISHED")
        return start + time.perf_counter() - started, taken
