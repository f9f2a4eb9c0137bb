"""Runs of two workers in float64, as a user starts them, beside the same run of one local worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestration.values import write_yaml
from tests.orchestration.distributed.test_workers import last_state
from tests.orchestration.distributed.workers import configured
from tests.orchestration.watched import Watched

ROOT = Path(__file__).resolve().parents[3]
RAY = {"name": "ray", "workers": 2}


def resolved(folder: Path, name: str, launcher: Mapping[str, Any], *more: str, pause: float = 0.0) -> Path:
    """Write the configuration of a run of a float64 net with GroupNorm, in the folder ``name``.

    Args:
        folder: holds the runs of a test.
        name: of the run.
        launcher: its settings.
        more: words of the command line.
        pause: seconds before each batch.
    """
    tree = configured(folder / name, "group_norm", "run.checkpoint_every=5", *more, task={"pause": pause})
    tree["launcher"] = dict(launcher)
    path = folder / f"{name}-{launcher['name']}.yaml"
    path.write_text(write_yaml(tree), encoding="utf-8")
    return path


def launch(config: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """Start a run in a process of its own, under the eyes of the test."""
    command = [sys.executable, "-m", "orchestration.run", "--config", str(config)]
    return Watched(command, config.with_suffix(".log"), environment or {}, ROOT)


def local_run(folder: Path) -> None:
    """Let one local worker do the run that the others are compared with."""
    run = launch(resolved(folder, "local", {"name": "local"}))
    assert run.wait() == 0, run.text()


def steps_saved(run: Path) -> int:
    """Return how many checkpoints a run has written so far."""
    return len(list((run / "checkpoints").glob("step-*.json")))


def same_result(folder: Path, name: str) -> None:
    """Fail unless a run ended with the masks and bits of the run of one local worker."""
    local, other = last_state(folder / "local")["optimizer"]["qasso"], last_state(folder / name)["optimizer"]["qasso"]
    assert bool(local["pruned"].any())
    for key in ("pruned", "fixed_bits"):
        assert torch.equal(local[key], other[key]), key
    lines = [
        [json.loads(line) for line in (folder / each / "metrics.jsonl").read_text().splitlines()]
        for each in ("local", name)
    ]
    assert [(each["kind"], each["step"]) for each in lines[0]] == [(each["kind"], each["step"]) for each in lines[1]]
    results = [json.loads((folder / each / "result.json").read_text()) for each in ("local", name)]
    for key in ("steps", "group_sparsity", "weight_bits", "activation_bits", "relative_bops", "bytes"):
        assert results[0][key] == results[1][key], key
