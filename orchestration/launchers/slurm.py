"""``launcher=slurm``: a run, or an array of runs, as batch jobs that outlive the submitting shell.

A job does the same ``orchestration.run.attempt`` as any launcher, from a copy of the code and of the configuration
made at submission. It needs nothing of this process any more once it is in the queue.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geta_core.errors import ConfigError, GetaError
from orchestration.config import Config, LauncherSettings
from orchestration.files import write_json
from orchestration.launchers import scheduler
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.requeue import saved_step
from orchestration.launchers.slurm_job import RECORD, SPEC, SlurmJob
from orchestration.launchers.slurm_settings import BEGUN, SRUN, TOKEN, asks_for_gpus, sbatch_options, task_cpus
from orchestration.launchers.snapshot import snapshot
from orchestration.owner import alive, owned
from orchestration.records import code_state, command
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError
from orchestration.standing import Standing, job_of, standings

SUBMISSION, CODE = "slurm", "code"
"""Folders for submitit's files and for the copy of the code."""
ARRAYS = ".arrays"
"""Folder, beside the runs of an array, for what they share."""
LOOK_EVERY = 2.0
"""Seconds between questions to Slurm while a job is waited for."""
SETTLES = 5.0
"""Seconds that a shared file system may take until it shows the last that a job has written."""


@dataclass(frozen=True)
class Submission:
    """A run in Slurm's hands."""

    directory: Path
    job: str | None
    """Number of the job; None when the run was complete already."""


class SlurmLauncher:
    """Runs as a batch job."""

    def launch(self, config: Config, place: RunDirectory) -> RunResult:
        """Submit the run and wait for its end; interrupting that leaves the job alone."""
        submit_many([config])
        return wait(place)


def submit(config: Config) -> Submission:
    """Submit one run and return at once.

    Raises:
        GetaError: for whatever the user can put right; nothing is left behind then.
    """
    return submit_many([config])[0]


def submit_many(configs: Sequence[Config]) -> list[Submission]:
    """Submit runs as one array and return at once; one run becomes a plain job, a finished one none.

    Args:
        configs: of the runs, with ``launcher=slurm``, equal launcher settings and different directories.

    Raises:
        ConfigError: when the runs cannot form an array, or a run goes on already.
        GetaError: when Slurm refuses; nothing is left behind then.
    """
    places = [RunDirectory.of(config) for config in configs]
    settings = _shared_settings(configs, places)
    for config, place in zip(configs, places, strict=True):
        place.check(config)
    wanted = [pair for pair in zip(configs, places, strict=True) if not pair[1].result.is_file()]
    jobs: dict[Path, str] = {}
    if wanted:
        with ExitStack() as held:
            for _, place in wanted:
                held.enter_context(owned(LaunchFolder(place).path))
            _refuse_living([place for _, place in wanted])
            jobs = _submit(wanted, settings)
    return [Submission(place.path, jobs.get(place.path)) for place in places]


def wait(place: RunDirectory, tell: Callable[[Standing], None] | None = None) -> RunResult:
    """Wait until a run's job has ended.

    Args:
        place: the run directory.
        tell: called when its state or its last checkpoint has changed.

    Raises:
        StoppedError: the job was cancelled.
        GetaError: the run failed; the message says why.
    """
    before: tuple[str, int] | None = None
    ended: float | None = None
    while not place.result.is_file():
        (now,) = standings([place.path])
        if tell is not None and (now.state, now.step) != before:
            tell(now)
        before = (now.state, now.step)
        ended = None if now.alive else ended or time.monotonic()
        if ended is not None and time.monotonic() - ended >= SETTLES:
            logs = f"`geta logs {shlex.quote(str(place.path))}` shows its output"
            if now.state == "cancelled":
                raise StoppedError(f"the job {now.job} was cancelled; the same command goes on", 15)
            raise GetaError(f"job {now.job}: {now.text}; {logs}")
        time.sleep(LOOK_EVERY)
    return RunResult.load(place.result)


def _shared_settings(configs: Sequence[Config], places: Sequence[RunDirectory]) -> LauncherSettings:
    if not configs:
        raise ConfigError(["an array needs at least one run"])
    settings, faults = configs[0].launcher, []
    if any(config.launcher != settings for config in configs):
        faults.append("the runs of an array must have equal launcher settings")
    if settings.name != "slurm":
        faults.append(f"submitting needs launcher=slurm, but got launcher={settings.name}")
    twice = sorted({str(place.path) for place in places if sum(each.path == place.path for each in places) > 1})
    faults += [f"the runs of an array must have different directories, but {path} is given twice" for path in twice]
    if faults:
        raise ConfigError(faults)
    return settings


def _refuse_living(places: Sequence[RunDirectory]) -> None:
    """Refuse runs that go on; the launcher's folders are this process's own by now, so that their locks say nothing."""
    numbers = {place.path: job_of(place) for place in places}
    known = scheduler.jobs(filter(None, numbers.values()))
    faults = []
    for path, number in numbers.items():
        job = known.get(number)
        of_slurm = job is not None and (job.waits or job.runs)
        if of_slurm or alive(path):
            state = "waiting" if job is not None and job.waits else "running"
            as_job = f" as job {number}" if of_slurm else ""
            end = f"geta cancel {shlex.quote(str(path))}"
            faults.append(f"{path} is {state} already{as_job}; wait for it, or end it: {end}")
    if faults:
        raise ConfigError(faults)


def _submit(wanted: Sequence[tuple[Config, RunDirectory]], settings: LauncherSettings) -> dict[Path, str]:
    """Write what the jobs need, submit them, and note their numbers."""
    places = [place for _, place in wanted]
    alone = LaunchFolder(places[0]).path
    array = places[0].path.parent / ARRAYS / f"{time.strftime('%F-%H%M%S')}-{secrets.token_hex(3)}"
    shared = alone if len(wanted) == 1 else array
    try:
        for made in (shared / SUBMISSION, shared / CODE):  # of an earlier job of this run, which has ended
            shutil.rmtree(made, ignore_errors=True)
        snapshot([config for config, _ in wanted], shared / CODE)
        about = {"began": time.time(), "command": command(), "code": code_state(), "cwd": os.getcwd()}
        for config, place in wanted:
            folder = LaunchFolder(place)
            folder.open()
            for left in (folder.path / RECORD, folder.cancelled):
                left.unlink(missing_ok=True)
            step = saved_step(place.checkpoints)
            spec = {"config": config.to_dict(), "step": step, "shared": str(shared), **about}
            write_json(folder.path / SPEC, spec)
        name = places[0].path.name if len(places) == 1 else places[0].path.parent.name
        calls = [SlurmJob(str(place.path)) for place in places]
        numbers = hand_over(calls, name, settings, shared / SUBMISSION, shared / CODE)
    except BaseException:
        if shared != alone:
            shutil.rmtree(shared, ignore_errors=True)
        for place in places:
            (LaunchFolder(place).path / SPEC).unlink(missing_ok=True)
            LaunchFolder(place).remove_if_alone()
        raise
    for place, number in zip(places, numbers, strict=True):
        write_json(LaunchFolder(place).path / RECORD, {"job": number, "submitted": about["began"]})
    return {place.path: number for place, number in zip(places, numbers, strict=True)}


def hand_over(
    calls: Sequence[Callable[[], None]], name: str, settings: LauncherSettings, folder: Path, code: Path
) -> list[str]:
    """Submit calls by submitit: one as a plain job, several as an array.

    Args:
        calls: what the jobs do.
        name: of the job or array.
        settings: of the launcher.
        folder: receives submitit's files.
        code: folder of the packages that the jobs import.

    Returns:
        The jobs' numbers.

    Raises:
        GetaError: when there is no Slurm, or it refuses.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError as error:
        raise GetaError("launcher=slurm needs submitit; install it") from error
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise GetaError("launcher=slurm needs sbatch and srun on PATH: this is no machine of a Slurm cluster")
    executor = submitit.SlurmExecutor(folder, max_num_timeout=settings.max_requeues)
    executor.update_parameters(**sbatch_options(settings, f"geta-{name}"), setup=setup_lines(settings, code, folder))
    try:
        with _outside_any_job(submitit), executor.batch():
            jobs = [executor.submit(call) for call in calls]
    except (FailedJobError, FailedSubmissionError) as error:
        said = " ".join(line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if line.strip())
        raise GetaError(f"Slurm refused the job: {said}; `geta doctor` checks the cluster") from error
    return [str(job.job_id) for job in jobs]


def setup_lines(settings: LauncherSettings, code: Path, folder: Path) -> list[str]:
    """Return the shell lines before Python: the user's, then what makes the job see its own copy of the code.

    Args:
        settings: of the launcher.
        code: the copy.
        folder: of submitit's files.
    """
    paths = [str(code), *(os.path.abspath(path) for path in sys.path[:1]), *_entries(os.environ.get("PYTHONPATH"))]
    lines = [*settings.setup, f"export PYTHONPATH={shlex.quote(os.pathsep.join(dict.fromkeys(paths)))}"]
    lines.append("export PYTHONSAFEPATH=1")  # else `python -m` puts the current directory before the copy
    lines.append(f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{settings.cpus_per_task}}}")
    # Since 22.05 srun takes neither from sbatch: the CPUs of a task, nor, after --export=NONE, what is exported here.
    lines.append(f"export SRUN_CPUS_PER_TASK={task_cpus(settings)} SLURM_EXPORT_ENV=ALL")
    if settings.nodes > 1:
        begun = f"{shlex.quote(str(folder / 'begun'))}-${{SLURM_JOB_ID}}-${{SLURM_RESTART_COUNT:-0}}"
        lines += [TOKEN, f"export {BEGUN}={begun}", SRUN]
    if not asks_for_gpus(settings):
        lines.append("export CUDA_VISIBLE_DEVICES=")  # a node without confinement would show those of other jobs
    return lines


def _entries(paths: str | None) -> list[str]:
    return [os.path.abspath(path) for path in (paths or "").split(os.pathsep) if path]


@contextmanager
def _outside_any_job(submitit: Any) -> Iterator[None]:
    """Hide the variables of a job that this process itself may run in: sbatch would take them for options."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    conf = os.environ.get("SLURM_CONF")
    with submitit.helpers.clean_env():
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield
