"""A machine with torch, numpy, scipy, safetensors and PyYAML alone can run a resolved configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from orchestration.compose import compose
from orchestration.values import write_yaml
from tests.orchestration.small import SMALL
from tests.orchestration.test_tasks import write_cifar10

# Hides the packages named first, as if they were not installed; then runs the module as `python -m` does.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder
absent = set(sys.argv.pop(1).split(","))
class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
sys.argv[0] = "orchestration.run"
runpy.run_module("orchestration.run", run_name="__main__", alter_sys=True)
"""
ABSENT = (
    "hydra,omegaconf,mlflow,ray,optuna,submitit,rich,matplotlib,sklearn,PIL,pandas,psutil,transformers,hypothesis,antlr4,"
    "sqlalchemy,alembic,torchvision,pytest"
)


def bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, ABSENT, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_a_run_on_a_bare_machine(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data", images=30)
    arguments = [value for value in SMALL if value.partition("=")[0] not in ("task", "tracker", "run.steps")]
    config = compose([*arguments, "task=cifar10", "model.width=4", "run.steps=20", "tracker=mlflow"])
    (tmp_path / "resolved.yaml").write_text(write_yaml(config.to_dict()))
    done = bare(
        tmp_path, "--config", "resolved.yaml", "tracker=jsonl", f"task.root={tmp_path / 'data'}", "run.output=out",
        "method.sparsity=0.25",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["steps"] == 20 and abs(result["group_sparsity"] - 0.25) < 0.05
    assert "test accuracy" in done.stdout and "epoch" in done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "metrics.jsonl" in names and "artifact" in names and "mlflow.json" not in names
    assert "pictures" not in names, "without matplotlib there are none"


def test_what_needs_more_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text(write_yaml(compose(SMALL).to_dict()))
    digits = "task=digits reads the images that scikit-learn carries; install scikit-learn"
    hydra = "composing a command line needs hydra-core; install it, or give a resolved file with --config"
    for arguments, words in {("--config", "resolved.yaml"): digits, ("task=digits",): hydra}.items():
        done = bare(tmp_path, *arguments)
        assert done.returncode == 2
        assert done.stderr == f"geta: {words}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"resolved.yaml"}
