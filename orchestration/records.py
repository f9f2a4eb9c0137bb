"""What must be known about a run to repeat it: command, code, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("geta", "torch", "numpy", "scipy", "safetensors", "PyYAML", "hydra-core", "mlflow", "scikit-learn"),
    *("ray", "submitit", "optuna", "torchvision", "transformers", "timm", "torchao"),
)

STARTED_FROM = "started_from"
"""Of an attempt's record: SHA-256 of the file of weights that the run started from; absent where it drew its own."""
LONGEST_PATCH = 1_000_000
"""Characters of a patch that is kept."""


def environment(device: str) -> dict[str, Any]:
    """Return versions, machine and the state of the code.

    Args:
        device: name of the device that computes.
    """
    return {
        "command": command(),
        "code": code_state(),
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def command() -> str:
    """Return the command line of this process, fit for a shell."""
    program, *rest = sys.orig_argv
    if rest and Path(rest[0]).name == "geta":  # the console script
        return shlex.join(["geta", *rest[1:]])
    return shlex.join([Path(program).name, *rest])


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_state() -> dict[str, Any] | None:
    """Return commit and whether files differ from it; None where the code is not in a git checkout."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain"))}


def uncommitted() -> str:
    """Return the difference between the code and its commit as a patch; empty where there is none or no checkout."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return ""
    patch = _git(folder, "diff", "HEAD") or ""
    return patch + "\n" if 0 < len(patch) <= LONGEST_PATCH else ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
