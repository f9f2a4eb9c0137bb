"""What a batch job does: one attempt of a run, and, where it was told to stop, its own return to the queue.

submitit starts ``SlurmJob`` on the node. Signals only set a flag that the training loop reads between steps; whatever
they find is saved there, on disk, and every start goes on from disk, since Slurm may also end and requeue a job
without any signal. Nothing heavy is imported before the signals are handled.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestration.signals import StoppedError, StopRequest, stop_requests

if TYPE_CHECKING:
    from orchestration.launchers.base import LaunchFolder
    from orchestration.launchers.requeue import Requeues
    from orchestration.rundir import RunDirectory

SPEC, RECORD = "spec.json", "job.json"
"""In the launcher's folder: what the job is to do, written before it is submitted; its number, written after."""
PATIENCE = 120.0
"""Seconds in which Slurm must end a job that it has requeued."""
REASONS = {
    signal.SIGUSR2: "Slurm warned of the time limit or of a preemption",
    signal.SIGTERM: "Slurm asked the job to end",
}


class SlurmJob:
    """One run, as submitit calls it.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __call__(self) -> None:
        """Do the run, or go on with it."""
        os.environ.pop("PYTHONSAFEPATH", None)  # meant for this interpreter alone, not for those that a run starts
        with stop_requests(signal.SIGUSR2) as stop:
            from orchestration.launchers.base import LaunchFolder
            from orchestration.rundir import RunDirectory

            place = RunDirectory(Path(self.directory))
            folder = LaunchFolder(place)
            with (
                folder.log("worker-0").open("a", encoding="utf-8", buffering=1) as log,
                redirect_stdout(log),
                redirect_stderr(log),
            ):
                log.write(f"--- job {job_number()}, start {restarts() + 1}, on {node()}, {time.strftime('%F %T')}\n")
                work(place, folder, stop, log)

    def checkpoint(self) -> Any:
        """Tell submitit to start the job again: its own handler is there until ``__call__`` has set ours."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def job_number() -> str:
    """Return the number by which Slurm's commands know this job, such as 12, or 12_3 in an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def restarts() -> int:
    """Return how often Slurm has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def node() -> str:
    """Return the node's name in Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def work(place: RunDirectory, folder: LaunchFolder, stop: StopRequest, log: TextIO) -> None:
    """Do an attempt and leave word of its end; raise what should make the job a failed one."""
    from geta_core.errors import GetaError
    from orchestration.launchers.requeue import saved_step

    folder.open()
    began = saved_step(place.checkpoints)
    try:
        requeues = _count(place, folder)
        _attempt(place, folder, stop, log)
    except StoppedError as stopped:
        log.write(f"{stopped}\n")
        _go_on_later(place, folder, requeues, began, stopped)
    except GetaError as error:
        log.write(f"{error}\n")
        folder.tell_end(0, error)
        raise
    except Exception as error:
        traceback.print_exc(file=log)
        folder.tell_end(0, GetaError(_one_line(error)))
        raise


def _count(place: RunDirectory, folder: LaunchFolder) -> Requeues:
    """Return the count of this job's starts; those that Slurm ended without a word are counted now.

    Raises:
        GetaError: when there were too many, or they came to nothing.
    """
    from orchestration.files import write_json
    from orchestration.launchers.requeue import Requeues, saved_step

    spec, number = _spec(folder), job_number()
    write_json(folder.path / RECORD, {"job": number, "submitted": spec["began"]})  # the submitting shell may have died
    requeues = Requeues(folder.attempts, number, int(spec["config"]["launcher"]["max_requeues"]))
    while len(requeues.attempts) < restarts():
        before = requeues.attempts[-1]["ended"] if requeues.attempts else spec["step"]
        requeues.ended(before, saved_step(place.checkpoints), "Slurm ended the job and started it again")
    return requeues


def _attempt(place: RunDirectory, folder: LaunchFolder, stop: StopRequest, log: TextIO) -> None:
    from orchestration.config import Config
    from orchestration.launchers.ray_worker import FirstStep
    from orchestration.run import Setting, attempt

    spec = _spec(folder)
    os.chdir(spec["cwd"])
    folder.stamp("job started", spec["began"])
    if place.result.is_file():
        return
    slurm = {"job": job_number(), "node": node(), "restarts": restarts()}
    setting = Setting(
        show=lambda total, done, title: FirstStep(total, log, folder, spec["began"]),
        about={"command": spec["command"], "code": spec["code"], "slurm": slurm},
    )
    attempt(Config.from_dict(spec["config"]), place, stop, setting)


def _go_on_later(
    place: RunDirectory, folder: LaunchFolder, requeues: Requeues, began: int, stopped: StoppedError
) -> None:
    """Put the job back into the queue, unless someone has cancelled it or it was there too often."""
    from geta_core.errors import GetaError
    from orchestration.launchers import scheduler
    from orchestration.launchers.requeue import saved_step

    number = job_number()
    try:
        # Any other state: it was cancelled, or Slurm is requeuing it already; both are not ours to change.
        if scheduler.state_now(number) != "RUNNING" or folder.stop.exists():
            folder.tell_end(0, stopped)
            return
        reason = REASONS.get(signal.Signals(stopped.signal_number), "the job was asked to stop")
        requeues.ended(began, saved_step(place.checkpoints), reason)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which Slurm ends this process now
        scheduler.requeue(number)
        time.sleep(PATIENCE)
        raise GetaError(f"Slurm requeued the job {number}, but did not end it in {PATIENCE:.0f} s")
    except GetaError as error:
        sys.stderr.write(f"{error}\n")
        folder.tell_end(0, error)
        raise


def _spec(folder: LaunchFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder.path / SPEC).read_text(encoding="utf-8"))
    return found


def _one_line(error: BaseException) -> str:
    """Say what was raised and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    text = " ".join(str(error).split())
    return f"the job failed: {type(error).__name__}: {text[:300]}{where}"
