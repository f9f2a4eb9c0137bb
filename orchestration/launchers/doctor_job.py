"""What ``geta doctor`` does on a node: look around, wait for a signal, return to the queue once."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from geta_core.errors import GetaError
from orchestration.launchers.slurm_job import node
from orchestration.launchers.slurm_network import FIRST_PORT, own_address
from orchestration.signals import stop_requests

HELLO, LOCKED, NODE, SIGNAL, AGAIN = "hello", "locked", "node.json", "signal.json", "again.json"
"""Files: written and locked by the submitting machine; then the node's three reports."""
PORTS = 100
"""Ports of a block that are tried."""
PACKAGES = ("torch", "numpy", "scipy", "safetensors", "PyYAML")


class Probe:
    """The job, as submitit calls it.

    Args:
        folder: shared with the submitting machine.
        limit: seconds for which a signal is awaited.
        gpus: whether torch is to be asked for GPUs.
    """

    def __init__(self, folder: str, limit: float, gpus: bool) -> None:
        self.folder, self.limit, self.gpus = folder, limit, gpus

    def __call__(self) -> None:
        """Report, await a signal, and requeue this job; the second start only says that it came to it."""
        from orchestration.files import write_json
        from orchestration.launchers import scheduler
        from orchestration.launchers.slurm_job import job_number, restarts

        folder, started = Path(self.folder), time.time()
        with stop_requests(signal.SIGUSR2) as stop:
            if restarts():
                write_json(folder / AGAIN, {"time": started})
                return
            write_json(folder / NODE, look_around(folder, self.gpus))
            while not stop and time.time() - started < self.limit:
                time.sleep(0.1)
            write_json(folder / SIGNAL, {"signal": stop.signal_number, "after": time.time() - started})
            if stop:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                scheduler.requeue(job_number())
                time.sleep(60)


def look_around(folder: Path, gpus: bool) -> dict[str, Any]:
    """Return what a node sees of the shared folder, and what it has itself."""
    return {
        "host": socket.gethostname(),
        "clock": time.time(),
        "hello": _tried(lambda: (folder / HELLO).read_text()),
        "lock": _tried(lambda: lock_held_elsewhere(folder / LOCKED)),
        "rename": _tried(lambda: rename_over(folder / "renamed")),
        "python": platform.python_version(),
        "versions": {name: _tried(lambda name=name: metadata.version(name)) for name in PACKAGES},  # type: ignore[misc]
        "tmp": _tried(lambda: shutil.disk_usage(tempfile.gettempdir()).free),
        "shm": _tried(lambda: shutil.disk_usage("/dev/shm").free),
        "ports": free_ports(),
        "address": _tried(lambda: own_address(node())),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": _tried(_gpus) if gpus else 0,
    }


def lock_held_elsewhere(path: Path) -> bool:
    """Whether a file that another machine has locked cannot be locked here."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def rename_over(path: Path) -> bool:
    """Replace a file durably, as checkpoints are written; return whether it holds the new text."""
    from orchestration.files import write_text

    for text in ("old", "new"):
        write_text(path, text)
    return path.read_text() == "new"


def free_ports(first: int = FIRST_PORT) -> int:
    """Return how many ports of a block can be listened on."""
    free = 0
    for port in range(first, first + PORTS):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
            else:
                free += 1
    return free


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _tried(look: Callable[[], Any]) -> Any:
    """Return what a look gives, or the error as a text that begins with "error:"."""
    try:
        return look()
    except (OSError, ImportError, RuntimeError, GetaError) as error:  # what went wrong is the finding
        return f"error: {type(error).__name__}: {error}"
