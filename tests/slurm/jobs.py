"""What the Slurm tests share: short runs as jobs, and what Slurm and the run directory say of them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestration.compose import compose
from orchestration.config import Config
from orchestration.launchers.requeue import saved_step
from orchestration.launchers.slurm import Submission
from orchestration.standing import Standing, standings
from tests.orchestration.small import small, start
from tests.slurm.nets import GATE

LIMIT = 420.0
"""Seconds that a run may take on a loaded machine, waits in the queue included."""
NET = "tests.slurm.nets:slow"
CLUSTER = Path(__file__).parent / "cluster"
LAUNCHER = ("launcher=slurm", "launcher.mem_gb=2", "launcher.timeout_min=15", "launcher.signal_s=30")


def config(output: Path, *more: str) -> Config:
    """Return a short run as a job."""
    values = small(output, *LAUNCHER, *more)
    if any(":" in value for value in more if value.startswith("model=")):  # a net of the test's own has no width
        values.remove("model.width=6")
    return compose(values)


@dataclass(frozen=True)
class Gate:
    """The file that keeps a run slow."""

    path: Path

    def values(self, *more: str) -> list[str]:
        """Return the arguments of a run that this gate slows down; it takes two minutes if nobody opens it."""
        values = ("run.steps=120", "run.checkpoint_every=5", "method.activation_bits=[4,8]", f"model={NET}")
        return [*values, f"launcher.setup=['export {GATE}={self.path}']", *more]

    def close(self) -> None:
        """Make runs slow."""
        self.path.touch()

    def open(self) -> None:
        """Let them go on at full speed."""
        self.path.unlink(missing_ok=True)


def run_here(resolved: Path, output: Path) -> None:
    """Do a run in a process of this machine, without Slurm."""
    process = start(resolved, output, "launcher=local")
    try:
        assert process.wait(LIMIT) == 0, output.with_suffix(".log").read_text()
    finally:
        process.kill()
        process.wait()


def standing(run: Submission | Path) -> Standing:
    """Return where a run stands."""
    (found,) = standings([run if isinstance(run, Path) else run.directory])
    return found


def until(what: Callable[[], bool], why: str, seconds: float = LIMIT) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for this: {why}"
        time.sleep(0.1)


def until_saved(run: Submission) -> None:
    """Wait until a run has written a checkpoint."""
    until(lambda: saved_step(run.directory / "checkpoints") > 0, f"a checkpoint in {run.directory}")


def log(run: Submission) -> str:
    """Return what the job has written."""
    return (run.directory / "launcher" / "worker-0.log").read_text()


def starts(run: Submission) -> int:
    """Return how often the job has begun."""
    path = run.directory / "launcher" / "worker-0.log"
    return path.read_text().count("--- job ") if path.exists() else 0


def cluster(*command: str) -> None:
    """Do something to the cluster itself: cut, mend, kill or start a node."""
    subprocess.run([str(CLUSTER), *command], check=True, timeout=60)


def nodes_of(run: Submission) -> list[str]:
    """Return the nodes on which a job runs."""
    return slurm("squeue", "-h", "-j", str(run.job), "-o", "%N").split()


def is_up(node: str) -> bool:
    """Whether a node takes jobs."""
    return node in slurm("sinfo", "-h", "-p", "main", "-N", "-t", "idle,alloc,mix", "-o", "%N").split()


def all_nodes_up() -> bool:
    """Whether both nodes take jobs."""
    return is_up("node1") and is_up("node2")


def slurm(*command: str) -> str:
    """Run a command of Slurm's and return its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
