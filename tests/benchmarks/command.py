"""Start-up of the command line and of runs, and the tracker's share of a run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.bounds import Row, row
from tests.benchmarks.clock import Spread

ROOT = Path(__file__).resolve().parents[2]
EPOCH_LINES, EPOCH_PAUSE, EPOCHS = 30, 0.5, 10
"""Lines that are timed, the seconds between them, and the epochs of the run whose share is given."""
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
    """Return the share of a run (CIFAR-10, ResNet20, batch 64, 10 epochs) that its journal and its copy in MLflow take.

    Journal, start and end of a copy in a real SQLite store are measured, the end with three pictures and an artifact;
    the length of an epoch is the measured step time with QASSO times the number of steps.

    Args:
        step_seconds: of one training step, None where it was not measured.
    """
    text = "journal + MLflow / run of CIFAR-10, ResNet20"
    if step_seconds is None or importlib.util.find_spec("mlflow") is None:
        reason = "MLflow is not installed" if step_seconds is not None else "needs the step time of resnet20"
        return row("tracking", "resnet20", text, None, device="cpu", unit="share", note=reason)
    once, lines = _mlflow_seconds()
    epoch = step_seconds * CIFAR_STEPS
    spread = Spread.of([(line * EPOCHS + once) / (epoch * EPOCHS) for line in lines])
    note = f"{Spread.of(lines).median * 1e3:.1f} ms per epoch of {epoch:.0f} s, start and end {once:.2f} s"
    return row("tracking", "resnet20", text, spread, device="cpu", unit="share", note=note)


def _mlflow_seconds() -> tuple[float, list[float]]:
    """Return the seconds that a run spends once on its copy in MLflow, and those on each epoch's line."""
    from orchestration.owner import owned
    from orchestration.tracking import mlflow
    from orchestration.tracking.base import TrackerSettings
    from orchestration.tracking.jsonl import Journal

    metrics = {f"metric/{number}": 0.5 for number in range(15)}
    with tempfile.TemporaryDirectory() as name, owned(Path(name, "run")):
        folder = Path(name, "run")
        journal = Journal(folder)
        journal.open_at(0)
        started = time.perf_counter()
        tracker = mlflow.MlflowTracker(TrackerSettings(), "benchmark", folder)
        tracker.start({f"key{number}": number for number in range(60)}, {})
        once = time.perf_counter() - started
        taken = []
        for number in range(EPOCH_LINES):
            started = time.perf_counter()
            tracker.send([journal.append("epoch", (number, number), "joint", metrics)])
            taken.append(time.perf_counter() - started)
            time.sleep(EPOCH_PAUSE)
        files = [folder / f"{number}.png" for number in range(3)] + [folder / "artifact.bin"]
        for path in files:
            path.write_bytes(bytes(100_000))
        started = time.perf_counter()
        tracker.files(files)
        tracker.finish("FINISHED")
        return once + time.perf_counter() - started, taken


FIRST_STEP = """
import sys, time
began = time.process_time()
import torch
torch_imported = time.process_time()
from orchestration import loop
from orchestration.cli_run import main
after_step = loop.after_step
def stop(session, around):
    after_step(session, around)
    print(torch_imported - began, time.process_time() - torch_imported, flush=True)
    raise KeyboardInterrupt
loop.after_step = stop
main(sys.argv[1:])
"""
"""Runs a command line up to its first step; prints the CPU seconds of the import of torch, and those after it."""
DIGITS = ("task=digits", "run.threads=1", "run.device=cpu", "run.steps=40")


def local_row(times: int = 3) -> Row:
    """Time a local run (digits, copied to MLflow) up to its first step, without the import of torch, in CPU time."""
    taken, imports = [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as name:
            arguments = [*DIGITS, f"run.output={name}/run"]
            done = subprocess.run(
                [sys.executable, "-c", FIRST_STEP, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
            )
        imported, rest = map(float, done.stdout.split()[:2])
        imports.append(imported)
        taken.append(rest)
    note = f"torch's import {Spread.of(imports).median:.1f} s comes on top"
    return row(
        "start/local",
        "digits",
        "local run up to its first step, CPU time",
        Spread.of(taken),
        device="cpu",
        unit="s",
        note=note,
    )


def ray_row() -> Row:
    """Time two workers under Ray on this machine from the launch to the first step, with what the time goes to."""
    text = "first step after the launch, Ray, 2 workers"
    if importlib.util.find_spec("ray") is None:
        return row("start/ray", "digits", text, None, device="cpu", unit="s", note="Ray is not installed")
    with tempfile.TemporaryDirectory() as name:
        launcher = ["launcher=ray", "launcher.workers=2", "tracker=jsonl"]
        command = [sys.executable, "-m", "sweeps.cli", "run", *DIGITS, *launcher, f"run.output={name}/run"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            note = " ".join(done.stderr.split())[-200:]
            return row("start/ray", "digits", text, None, device="cpu", unit="s", note=note)
        lines = Path(name, "run", "launcher", "timeline.jsonl").read_text(encoding="utf-8").splitlines()
    events = {each["event"]: each["seconds"] for each in map(json.loads, lines)}
    note = ", ".join(f"{event} {seconds:.1f}" for event, seconds in events.items())
    return row("start/ray", "digits", text, Spread.of([events["first step"]]), device="cpu", unit="s", note=note)
