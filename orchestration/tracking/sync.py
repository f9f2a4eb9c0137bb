"""``geta sync``: brings the copies of runs in MLflow up to date, whatever happened to the runs or to the store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestration.tracking.copy import RunCopy
from orchestration.tracking.intent import INTENT, SENDER, Intent, is_settled, wanted_status
from orchestration.tracking.store import file_lock

RUNNING, BUSY, CURRENT = "is running and sends for itself", "is being sent by another process", "is up to date"


def synchronize(folder: Path, wait: bool = True) -> str:
    """Bring the copy of one run up to date.

    Args:
        folder: run directory with an ``mlflow.json``.
        wait: for a process that is sending already.

    Returns:
        What was found or done.
    """
    with sender(folder, wait) as mine:
        if not mine:
            return BUSY
        intent = Intent.read(folder)
        status = wanted_status(folder, intent) if intent is not None else None
        if status is None:
            return RUNNING
        sent = RunCopy(folder).close(status)
    return f"{CURRENT} ({status})" if not sent else f"was brought up to date: {sent} lines and files sent ({status})"


@contextmanager
def sender(folder: Path, wait: bool) -> Iterator[bool]:
    """Hold the right to send a run; yield False where another process has it and ``wait`` is not asked for."""
    if wait:
        with file_lock(folder / SENDER):
            yield True
        return
    import fcntl

    with (folder / SENDER).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def reconcile(root: Path, besides: Path) -> list[Path]:
    """Close the copies of runs whose process is gone, in the folders directly below ``root``.

    Args:
        root: folder of runs.
        besides: the run that asks.

    Returns:
        The runs that were closed.
    """
    closed = []
    for folder in run_folders(root, depth=1):
        intent = Intent.read(folder)
        if folder == besides or intent is None or is_settled(folder, intent) or wanted_status(folder, intent) is None:
            continue
        if synchronize(folder, wait=False) != BUSY:
            closed.append(folder)
    return closed


def run_folders(root: Path, depth: int = 3) -> list[Path]:
    """Return the run directories at or below a folder, those with a copy in MLflow, in order."""
    if (root / INTENT).is_file():
        return [root]
    if depth == 0 or not root.is_dir():
        return []
    inner: Iterable[Path] = (each for each in sorted(root.iterdir()) if each.is_dir() and not each.is_symlink())
    return [found for each in inner for found in run_folders(each, depth - 1)]


def explain(error: Exception) -> str:
    """Return an error in one short line, without what an address may hold of passwords."""
    text = re.sub(r"://[^/\s@]*@", "://", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}"
