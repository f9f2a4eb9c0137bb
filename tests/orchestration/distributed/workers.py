"""Real processes that train together over gloo, without any launcher: ``python -m ...workers FOLDER RANK SIZE``.

They do the jobs in ``FOLDER/jobs.json`` one after another, and write down what each worker held at every period.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from geta_core.errors import GetaError
from orchestration import loop
from orchestration.compose import compose
from orchestration.config import Config
from orchestration.run import Setting, attempt
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError, StopRequest
from orchestration.state import Session
from orchestration.world import LOOPBACK, Group, World

ROOT = Path(__file__).resolve().parents[3]
MODULE = "tests.orchestration.distributed.workers"
NETS = "tests.orchestration.distributed.nets"
STEPS = 40
EARLY = 5
LIMIT = 280.0


def configured(output: Path, net: str, *more: str, task: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the tree of a run of a float64 net through all stages."""
    arguments = [
        "task=digits",
        f"model={NETS}:{net}",
        "optimizer.lr=0.05",
        f"run.steps={STEPS}",
        "run.checkpoint_every=17",
        "run.threads=1",
        "run.device=cpu",
        "method.weight_bits=[4,8]",
        "method.activation_bits=[4,8]",
        "method.lr_quant=1e-4",
        "method.projection_periods=3",
        "method.pruning_periods=3",
        "tracker=jsonl",
        f"run.output={output}",
        *more,
    ]
    tree = compose(arguments).to_dict()
    tree["task"] = {"name": f"{NETS}:Digits64", "batch_size": 32, **(task or {})}
    return tree


def do(job: dict[str, Any], world: World, notes: Path) -> None:
    """Do one job as one of the workers, and write down its periods, its early weights and how it ended."""
    stop, periods, early = StopRequest(), [], {}
    original = loop.after_step

    def after(session: Session, around: loop.Surroundings) -> None:
        original(session, around)
        optimizer: Any = session.optimizer
        if session.step == EARLY:
            early.update(
                {
                    name: value.clone()
                    for name, value in session.prepared.model.state_dict().items()
                    if isinstance(value, torch.Tensor) and value.is_floating_point()
                }
            )
        if session.period_ended() or session.step == STEPS:
            periods.append(
                {
                    "step": session.step,
                    "pruned": optimizer.pruned,
                    "redundant": optimizer._redundant.clone(),
                    "bits": optimizer.fixed_bits(),
                    "exact": session.prepared.bits(),
                }
            )
        if world.rank == job.get("rank", 0):
            if session.step == job.get("stop_after"):
                stop.signal_number = 15
            if session.step == job.get("spoil_after"):
                optimizer._redundant[0] = ~optimizer._redundant[0]

    config = Config.from_dict(job["config"])
    loop.after_step = after
    try:
        result = attempt(config, RunDirectory.of(config), stop, Setting(world=world))
        end = "done" if result else "followed"
    except (GetaError, StoppedError) as error:
        end = f"{type(error).__name__}: {error}"
    finally:
        loop.after_step = original
    torch.save({"periods": periods, "early": early, "end": end}, notes)


def note_of(folder: Path, name: str, rank: int) -> Path:
    """Return the file in which a worker writes down a job."""
    return folder / f"{name}-{rank}.note"


def together(folder: Path, jobs: dict[str, Any], size: int = 2) -> None:
    """Let new processes do jobs together, and wait for them."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    (folder / "meet").unlink(missing_ok=True)
    log = (folder / "workers.log").open("wb")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", MODULE, str(folder), str(rank), str(size)], stdout=log, stderr=log, cwd=ROOT
        )
        for rank in range(size)
    ]
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
    if codes != [0] * size:
        raise RuntimeError("\n".join(_errors((folder / "workers.log").read_text())))


def _errors(log: str) -> list[str]:
    """Return the lines of Python's tracebacks, without the frames of the libraries' C++ code."""
    return [line for line in log.splitlines() if "frame #" not in line][-60:]


def alone(folder: Path, jobs: dict[str, Any]) -> None:
    """Do jobs as the only worker, in this process."""
    for name, job in jobs.items():
        do(job, World(), note_of(folder, name, 0))


def read_note(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    """Return what a worker wrote down."""
    found: dict[str, Any] = torch.load(note_of(folder, name, rank), weights_only=True)
    return found


def by_file(path: Path) -> Callable[[str | None], str]:
    """Return a way to meet by a file in a folder that all workers see."""

    def meet(text: str | None) -> str:
        if text is not None:
            path.with_suffix(".new").write_text(text, encoding="utf-8")
            os.replace(path.with_suffix(".new"), path)
        until = time.monotonic() + LIMIT
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.02)
        return path.read_text(encoding="utf-8")

    return meet


def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    world = Group.join(rank, size, by_file(folder / "meet"), host=LOOPBACK, backend="gloo", timeout_s=120)
    for name, job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")).items():
        do(job, world, note_of(folder, name, rank))
    world.close()


if __name__ == "__main__":
    main()
