"""Processes of a launch: they carry a mark in their environment, die with their parent, and are ended by their id."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestration.signals import shielded

MARK = "GETA_LAUNCH"
"""Environment variable that every process of a launch inherits; its value names the launch."""
GRACE = 5.0
"""Seconds that processes get to end by themselves, and again after SIGTERM."""


def marked(launch: str) -> list[int]:
    """Return the ids of the living processes of a launch, but not this process.

    Only the environment tells them: Ray's processes are no children of ours once their starter has ended.
    """
    wanted = f"{MARK}={launch}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            if wanted in environment.split(b"\0") and _state(entry) != "Z":
                found.append(int(entry.name))
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def _state(entry: Path) -> str:
    return _fields(entry)[0]


def _fields(entry: Path) -> list[str]:
    # The name before them may hold spaces and brackets (proc(5)).
    return (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()


def kill_session(number: int) -> None:
    """End what is left of a session, whatever can be read of its processes.

    Args:
        number: id of the process that began it (``start_new_session``), and that has ended: if a process has that id,
            it is another one's by now, and nothing is done.
    """
    if Path(f"/proc/{number}").exists():
        return
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, _, _, session = _fields(entry)[:4]
            if int(session) == number and state not in "ZX":
                os.kill(int(entry.name), signal.SIGKILL)


def end_marked(launch: str) -> int:
    """End what is left of a launch: wait, then SIGTERM, then SIGKILL, each to single processes by their id.

    Returns:
        The number of processes that had to be told.
    """
    told: set[int] = set()
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + GRACE
        alive = marked(launch)
        if number is not None:
            told.update(alive)
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        while alive and time.monotonic() < until:
            time.sleep(0.05)
            alive = marked(launch)
        if not alive:
            break
    return len(told)


def kill_marked(launch: str) -> None:
    """End the processes of a launch at once, where nothing that they hold is of use any more."""
    until = time.monotonic() + GRACE
    while (alive := marked(launch)) and time.monotonic() < until:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def die_with_parent(parent: int) -> None:
    """Let the system kill this process when its parent ends, however it ends (Linux only).

    Args:
        parent: id of the process that started this one.
    """
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1  # prctl(2)
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def private_folder(launch: str) -> Iterator[Path]:
    """Make a temporary folder for the processes of a launch; afterwards it and they are gone.

    A small process of its own sees to that, so that it also holds when this one is killed. The folder's path is short:
    Ray's sockets lie in it, and their paths may have 107 bytes.
    """
    path = Path(tempfile.mkdtemp(prefix="geta-", dir="/tmp"))
    arguments = [sys.executable, "-m", "orchestration.launchers.processes", launch, str(path)]
    source = str(Path(__file__).resolve().parents[2])
    with shielded():
        reaper = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, "PYTHONPATH": source},
            start_new_session=True,
        )
    try:
        yield path
    finally:
        assert reaper.stdin is not None
        reaper.stdin.close()
        reaper.wait()


def main() -> None:
    """Wait until the launcher closes the pipe, or is gone; then end what is left of a launch and remove its folder."""
    launch, folder = sys.argv[1:]
    sys.stdin.read()
    end_marked(launch)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
