"""Parts that some tests need and a machine may lack; each probe returns what is missing, or None."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")


def data_root() -> Path | None:
    """Return the directory that holds the data sets in their standard layouts, or None."""
    value = os.environ.get("GETA_DATA")
    return Path(value) if value else None


def _cifar10() -> str | None:
    root = data_root()
    if root is None:
        return "GETA_DATA is not set; it names a directory that holds cifar-10-batches-py/"
    absent = [name for name in CIFAR10_FILES if not (root / "cifar-10-batches-py" / name).is_file()]
    return f"{root}/cifar-10-batches-py lacks {', '.join(absent)}" if absent else None


def _gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def _chromium() -> str | None:
    if shutil.which("chromium"):
        return None
    return "chromium is not on PATH; on Debian: apt-get install -y --no-install-recommends chromium"


def _compiler() -> str | None:
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and {compiler!r} is not on PATH"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.is_file() else f"torch.compile needs Python's headers, and {header} does not exist"


def _package(name: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"the package {name} is not installed"


def _postgresql() -> str | None:
    from geta_core.errors import GetaError
    from orchestration.services.postgres import find_programs

    try:
        find_programs()
    except GetaError as error:
        return str(error)
    return None if importlib.util.find_spec("psycopg") else "the package psycopg is not installed"


def _proc() -> str | None:
    return None if Path("/proc/self/environ").is_file() else "the system has no /proc, by which processes are found"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "only root hands PostgreSQL to another user"


def _small_disk() -> str | None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        return "only root mounts a small disk"
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", place]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode == 0:
            subprocess.run(["umount", place], capture_output=True, check=False)
            return None
    return f"a tmpfs cannot be mounted here ({mounted.stderr.strip()[:100]})"


def _slurm() -> str | None:
    for command in (["sbatch", "--version"], ["srun", "--version"], ["sinfo", "-h"], ["sacct", "-n"]):
        if shutil.which(command[0]) is None:
            return f"{command[0]} is not on PATH; as root, `tests/slurm/cluster up` brings a cluster up"
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return f"{command[0]} gave no answer in 20 s"
        if done.returncode:
            return f"{command[0]} failed ({' '.join(done.stderr.split())[:100]}); see `tests/slurm/cluster up`"
    return None


PROBES: dict[str, Callable[[], str | None]] = {
    "chromium": _chromium,
    "cifar10": _cifar10,
    "compiler": _compiler,
    "gpu": _gpu,
    **{
        name: _package(name)
        for name in (
            "brevitas",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "optuna_dashboard",
            "timm",
            "torchao",
            "torchvision",
            "transformers",
        )
    },
    "postgresql": _postgresql,
    "proc": _proc,
    "root": _root,
    "slurm": _slurm,
    "small_disk": _small_disk,
}


@cache
def missing(name: str) -> str | None:
    """Return why a part is not here, or None."""
    return PROBES[name]()


def check(names: Iterable[str], where: str) -> frozenset[str]:
    """Return ``names`` as a set.

    Raises:
        ValueError: a name is no part.
    """
    asked = frozenset(names)
    unknown = sorted(asked - PROBES.keys())
    if unknown:
        raise ValueError(f"{where}: no such part: {', '.join(unknown)} (known: {', '.join(sorted(PROBES))})")
    return asked


def required() -> frozenset[str]:
    """Return the parts whose absence is a failure: the comma-separated names in GETA_REQUIRE."""
    return check((name for name in os.environ.get("GETA_REQUIRE", "").split(",") if name), "GETA_REQUIRE")
