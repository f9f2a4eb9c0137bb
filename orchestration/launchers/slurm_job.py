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
TAKES_OVER = 180.0
"""Seconds in which an earlier start of the run must leave it: its file locks outlive a dead node by a minute or two."""
REASONS = {
    signal.SIGUSR2: "Slurm warned of the time limit or of a preemption",
    signal.SIGTERM: "Slurm asked the job to end",
}


class SlurmJob:
    """One run, as submitit calls it in each task of the job.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __call__(self) -> None:
        """Do the run, or go on with it; the tasks beyond the first lend it their nodes."""
        os.environ.pop("PYTHONSAFEPATH", None)  # meant for this interpreter alone, not for those that a run starts
        with stop_requests(signal.SIGUSR2) as request:
            from orchestration.launchers.base import LaunchFolder
            from orchestration.rundir import RunDirectory

            place = RunDirectory(Path(self.directory))
            folder = LaunchFolder(place)
            who = "node" if task() else "worker"
            with (
                folder.log(f"{who}-{task()}").open("a", encoding="utf-8", buffering=1) as log,
                redirect_stdout(log),
                redirect_stderr(log),
            ):
                log.write(f"--- job {job_number()}, start {restarts() + 1}, on {node()}, {time.strftime('%F %T')}\n")
                if task():
                    _lend_node(place, folder, log)
                else:
                    work(place, folder, JobStop(request, folder.path / RECORD), log)

    def checkpoint(self) -> Any:
        """Tell submitit to start the job again: its own handler is there until ``__call__`` has set ours."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class JobStop(StopRequest):
    """A signal's request to stop, or the word of a later start of the run.

    A node that is cut off loses its job, which starts again elsewhere, but not its processes. Where both see the run
    directory, the earlier start leaves it to the later one.

    Args:
        request: that of the signals.
        record: the file in which each start says that it has begun.
        every: seconds between looks at the file.
    """

    def __init__(self, request: StopRequest, record: Path, every: float = 5.0) -> None:
        self._request, self._record, self._every = request, record, every
        self._looked = time.monotonic()
        self.superseded = False

    def heard(self) -> int:
        """Return the number of a signal, 0 while there is none."""
        if not self.signal_number:
            self.signal_number = self._request.heard()
        if not self.signal_number and time.monotonic() - self._looked >= self._every:
            self._looked = time.monotonic()
            if _later_start(self._record):
                self.signal_number, self.superseded = int(signal.SIGTERM), True
        return self.signal_number


def task() -> int:
    """Return which of the job's tasks this is; each has a node of its own."""
    return int(os.environ.get("SLURM_PROCID", "0"))


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


def work(place: RunDirectory, folder: LaunchFolder, stop: JobStop, log: TextIO) -> None:
    """Do an attempt and leave word of its end; raise what should make the job a failed one."""
    from geta_core.errors import GetaError
    from orchestration.launchers.requeue import saved_step
    from orchestration.launchers.slurm_ray import ClusterLostError
    from orchestration.owner import owned

    _claim(folder)
    try:
        with owned(folder.path, TAKES_OVER):
            folder.open()
            began = saved_step(place.checkpoints)
            requeues = _count(place, folder)
            try:
                _attempt(place, folder, stop, log)
            except (StoppedError, ClusterLostError) as end:
                log.write(f"{end}\n")
                if stop.superseded:
                    log.write("this job has started again elsewhere, or another one has\n")
                else:
                    _go_on_later(place, folder, requeues, began, end)
    except GetaError as error:
        log.write(f"{error}\n")
        folder.tell_end(0, error)
        raise
    except Exception as error:
        traceback.print_exc(file=log)
        folder.tell_end(0, GetaError(_one_line(error)))
        raise


def _claim(folder: LaunchFolder) -> None:
    """Say that this start has begun: the submitting shell may have died, and an earlier start may still be alive."""
    from orchestration.files import write_json
    from orchestration.launchers.slurm_settings import BEGUN

    record = {"job": job_number(), "submitted": _spec(folder)["began"], "start": restarts()}
    write_json(folder.path / RECORD, record)
    if begun := os.environ.get(BEGUN):
        Path(begun).touch()


def _later_start(record: Path) -> bool:
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
        return bool(told["job"] != job_number() or told.get("start", 0) > restarts())
    except (OSError, ValueError, KeyError):
        return False


def _count(place: RunDirectory, folder: LaunchFolder) -> Requeues:
    """Return the count of this job's starts; those that Slurm ended without a word are counted now.

    Raises:
        GetaError: when there were too many, or they came to nothing.
    """
    from orchestration.launchers.requeue import Requeues, saved_step

    spec = _spec(folder)
    requeues = Requeues(folder.attempts, job_number(), int(spec["config"]["launcher"]["max_requeues"]))
    while len(requeues.attempts) < restarts():
        before = requeues.attempts[-1]["ended"] if requeues.attempts else spec["step"]
        requeues.ended(before, saved_step(place.checkpoints), "Slurm ended the job and started it again")
    return requeues


def _attempt(place: RunDirectory, folder: LaunchFolder, stop: StopRequest, log: TextIO) -> None:
    from orchestration.config import Config
    from orchestration.launchers.slurm_ray import work_with_ray

    spec = _spec(folder)
    os.chdir(spec["cwd"])
    folder.stamp("job started", spec["began"])
    if place.result.is_file():
        return
    config = Config.from_dict(spec["config"])
    slurm = {"job": job_number(), "node": node(), "restarts": restarts()}
    about = {"command": spec["command"], "code": spec["code"], "slurm": slurm}
    if config.launcher.workers > 1:
        work_with_ray(config, place, stop, about, spec["began"])
        return
    from orchestration.launchers.ray_worker import FirstStep
    from orchestration.run import Setting, attempt

    attempt(
        config,
        place,
        stop,
        Setting(show=lambda total, done, title: FirstStep(total, log, folder, spec["began"]), about=about),
    )


def _lend_node(place: RunDirectory, folder: LaunchFolder, log: TextIO) -> None:
    from orchestration.config import Config
    from orchestration.launchers.slurm_ray import serve

    try:
        serve(place, Config.from_dict(_spec(folder)["config"]).launcher)
    except Exception as error:
        log.write(f"{error}\n")
        raise


def _go_on_later(place: RunDirectory, folder: LaunchFolder, requeues: Requeues, began: int, end: Exception) -> None:
    """Put the job back into the queue, unless someone has cancelled it or it was there too often.

    Raises:
        GetaError: when it cannot go there.
    """
    from geta_core.errors import GetaError
    from orchestration.launchers import scheduler
    from orchestration.launchers.requeue import saved_step

    number, reason = job_number(), str(end)
    if isinstance(end, StoppedError):
        reason = REASONS.get(signal.Signals(end.signal_number), "the job was asked to stop")
    # Any other state: it was cancelled, or Slurm is requeuing it already; both are not ours to change.
    if scheduler.state_now(number) != "RUNNING" or folder.cancelled.exists():
        folder.tell_end(0, end)
        return
    requeues.ended(began, saved_step(place.checkpoints), reason, getattr(end, "tried", True))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which Slurm ends this process now
    scheduler.requeue(number)
    time.sleep(PATIENCE)
    raise GetaError(f"Slurm requeued the job {number}, but did not end it in {PATIENCE:.0f} s")


def _spec(folder: LaunchFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder.path / SPEC).read_text(encoding="utf-8"))
    return found


def _one_line(error: BaseException) -> str:
    """Say what was raised and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    text = " ".join(str(error).split())
    return f"the job failed: {type(error).__name__}: {text[:300]}{where}"
