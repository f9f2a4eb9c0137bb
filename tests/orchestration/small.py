"""What the orchestration tests share: a run that takes seconds, and ways to start and compare runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from orchestration.values import write_yaml

STEPS = 40
SMALL = (
    "task=digits",
    "model=digits_cnn",
    "model.width=6",
    "task.batch_size=32",
    f"run.steps={STEPS}",
    "run.checkpoint_every=7",
    "run.threads=1",
    "run.device=cpu",
    "method.projection_periods=2",
    "method.pruning_periods=2",
    "tracker=jsonl",
)
"""A run through all four stages, with a checkpoint interval that no stage or epoch is a multiple of."""


def small(output: Path | str, *more: str) -> list[str]:
    """Return the arguments of a short run, by GETA if nothing else is said."""
    shared = [value for value in SMALL if "method=dense" not in more or not value.startswith("method.")]
    return [*shared, f"run.output={output}", *more]


def write_resolved(folder: Path, *more: str) -> Path:
    """Write the resolved configuration of a short run and return the file."""
    from orchestration.compose import compose

    path = folder / "short.yaml"
    path.write_text(write_yaml(compose([*SMALL, *more]).to_dict()))
    return path


def start(resolved: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own; its messages go to a file beside the run."""
    command = [sys.executable, "-m", "orchestration.run", "--config", str(resolved), f"run.output={output}", *more]
    log = output.with_suffix(".log").open("ab")
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def outcome(directory: Path) -> dict[str, Any]:
    """Return everything about a finished run that must not depend on interruptions."""
    last = sorted((directory / "checkpoints").glob("step-*.pt"))[-1]
    state = torch.load(last, weights_only=True)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((directory / "result.json").read_text())
    return {
        "step": state["step"],
        "model": state["model"],
        "optimizer": state["optimizer"],
        "lines": [{key: line[key] for key in ("kind", "step", "epoch", "stage", "metrics")} for line in lines],
        "artifact": {path.name: path.read_bytes() for path in sorted((directory / "artifact").iterdir())},
        "result": {key: result[key] for key in ("metrics", "group_sparsity", "weight_bits", "relative_bops", "layers")},
    }


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Name every place where two nested results differ, bit for bit."""
    if isinstance(first, torch.Tensor):
        same = isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [where]
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        absent = object()
        return [
            found
            for key in keys
            for found in differences(first.get(key, absent), second.get(key, absent), f"{where}/{key}")
        ]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [found for number, (a, b) in pairs for found in differences(a, b, f"{where}/{number}")]
    return [] if first == second and type(first) is type(second) else [where]


def everything_under(folder: Path) -> set[str]:
    """Return every path under a folder, to see what a command left behind."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
