"""``geta status``, ``geta logs`` and ``geta cancel``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ConfigError
from orchestration.console import Parser, guarded, table, write
from orchestration.rundir import DEFAULT_ROOT

LOOK_EVERY = 1.0
"""Seconds between looks at a log that is followed."""
SLURM_EVERY = 10
"""Looks at a log between questions to Slurm whether the run still goes on."""


def status(arguments: Sequence[str]) -> int:
    """Show how far runs are."""
    parser = Parser("geta status", description="Say how far runs are; Slurm is asked about its jobs.")
    parser.add_argument(
        "folders", nargs="*", help=f"run directories, or folders that hold some (default: {DEFAULT_ROOT})"
    )
    given = parser.parse_args(arguments)
    return guarded(lambda: _status([Path(each) for each in given.folders or [DEFAULT_ROOT]]))


def logs(arguments: Sequence[str]) -> int:
    """Print what a run has written."""
    parser = Parser("geta logs", description="Print the output of a run under Slurm or Ray.")
    parser.add_argument("directory", help="of the run")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    given = parser.parse_args(arguments)
    return guarded(lambda: _logs(Path(given.directory), given.follow))


def cancel(arguments: Sequence[str]) -> int:
    """End jobs for good."""
    parser = Parser(
        "geta cancel",
        description="End the Slurm job of each run. It saves its state first where Slurm leaves it the time; "
        "the command that launched the run goes on from there.",
    )
    parser.add_argument("folders", nargs="+", help="run directories, or folders that hold some")
    given = parser.parse_args(arguments)
    return guarded(lambda: _cancel([Path(each) for each in given.folders]))


def _runs(folders: Sequence[Path]) -> list[Path]:
    from orchestration.standing import find_runs

    faults = [f"{folder} does not exist" for folder in folders if not folder.is_dir()]
    found = [run for folder in folders if folder.is_dir() for run in find_runs(folder)]
    faults += [f"{folder} holds no run" for folder in folders if folder.is_dir() and not find_runs(folder)]
    if faults:
        raise ConfigError(faults)
    return list(dict.fromkeys(found))


def _status(folders: Sequence[Path]) -> int:
    from orchestration.standing import standings

    rows = []
    for each in standings(_runs(folders)):
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.2%}"
        rows.append([_shown(each.directory), each.state, each.job, str(each.step), accuracy, each.text])
    table("", ["run", "state", "job", "step", "accuracy", ""], rows, texts=(1, 5))
    return 0


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _logs(directory: Path, follow: bool) -> int:
    from orchestration.rundir import RunDirectory
    from orchestration.standing import log_files, standings

    runs = _runs([directory])
    if len(runs) > 1:
        raise ConfigError([f"{directory} holds {len(runs)} runs; name one, such as {runs[0]}"])
    run = runs[0]
    at: dict[Path, int] = {}
    for look in range(sys.maxsize):
        over = not follow or (look % SLURM_EVERY == 0 and not standings([run])[0].alive)
        for path in log_files(RunDirectory(run)):  # after the question, so that the last words are shown
            with path.open("rb") as file:
                file.seek(at.get(path, 0))
                text = file.read()
            at[path] = at.get(path, 0) + len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        if over:
            break
        time.sleep(LOOK_EVERY)
    if not at:
        raise ConfigError([f"{run} has no log: it runs in the terminal, or has not started; see geta status {run}"])
    return 0


def _cancel(folders: Sequence[Path]) -> int:
    from orchestration.launchers import scheduler
    from orchestration.launchers.base import LaunchFolder
    from orchestration.rundir import RunDirectory
    from orchestration.standing import standings

    living = [each for each in standings(_runs(folders)) if each.alive]
    ours = [each for each in living if each.job]
    for each in ours:  # tells the job that it is not to return to the queue
        LaunchFolder(RunDirectory(each.directory)).cancelled.touch()
    if ours:
        scheduler.cancel([each.job for each in ours])
    for each in ours:
        write(f"cancelled job {each.job}: {_shown(each.directory)}")
    faults = [f"{each.directory} runs in a process of a terminal; end it there" for each in living if not each.job]
    if faults or not living:
        raise ConfigError(faults or ["none of these runs has a job that waits or runs"])
    return 0
