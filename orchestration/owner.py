"""Which process a run directory belongs to, and whether that process still lives.

The lock of a run directory is freed by the system when its process ends, however it ends; the file also says who took
it, so that another process can tell a run that goes on from one that died without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from geta_core.errors import GetaError

LOCK = ".lock"
PATIENCE = 1.0
"""Seconds for which a lock is tried: whoever only asks whether it is held has it for an instant."""
SILENCE = 300.0
"""Seconds without a sign of life after which a run of another machine is taken for dead."""


@contextmanager
def owned(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a run directory; other processes are kept out until this one leaves the block or ends.

    Args:
        folder: the directory.
        patience: seconds for which another process may still hold it.

    Raises:
        GetaError: when another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        if not _take(file, patience):
            raise GetaError(f"another process is running in {folder}; wait for it or change run.output")
        _write(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}))
        try:
            yield
        finally:
            _write(file, "")


def alive(folder: Path) -> bool:
    """Whether a process is running in a run directory.

    On this machine the process itself is looked up. A lock taken on another machine counts while it is held, where the
    file system shows that, or while the file was touched in the last ``SILENCE`` seconds.
    """
    try:
        with (folder / LOCK).open("r") as file:
            owner = json.loads(file.read() or "{}")
            if owner.get("host") == socket.gethostname():
                return process_lives(int(owner["pid"]), float(owner["time"]))
            if not _take(file, 0.0, shared=True):
                return True
            return bool(owner) and time.time() - os.fstat(file.fileno()).st_mtime < SILENCE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def show_life(folder: Path) -> None:
    """Touch the lock, for those who look from another machine."""
    try:
        os.utime(folder / LOCK)
    except OSError:  # the directory is being removed, or its disk is gone: nobody needs the sign then
        return


def process_lives(pid: int, since: float) -> bool:
    """Whether the process with this number runs now and ran at the time ``since`` (seconds since 1970)."""
    import psutil

    try:
        process = psutil.Process(pid)
        # The system counts start times in ticks from a boot time that it rounds.
        return bool(process.create_time() <= since + 2 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _take(file: IO[str], patience: float, shared: bool = False) -> bool:
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        else:
            return True


def _write(file: IO[str], text: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk the lock itself still keeps others out
        file.seek(0)
        file.truncate()
        file.write(text)
        file.flush()
