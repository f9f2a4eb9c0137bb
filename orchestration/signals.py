"""Turns a request to stop into a flag that the training loop reads between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class StoppedError(Exception):
    """The run was asked to stop; its state is in a checkpoint.

    Args:
        message: where it stopped and how it goes on.
        signal_number: what asked for it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Holds the number of the signal that asked for a stop, 0 while there is none."""

    signal_number = 0

    def heard(self) -> int:
        """Return the number."""
        return self.signal_number

    def __bool__(self) -> bool:
        return self.heard() != 0


class StopFile(StopRequest):
    """A request that arrives as a file holding the signal's number: for workers that get no signals.

    Args:
        path: the file; it need not exist.
        every: seconds between looks, so that a shared file system is not asked in every step.
    """

    def __init__(self, path: Path, every: float = 0.5) -> None:
        self._path, self._every = path, every
        self._looked = float("-inf")

    def heard(self) -> int:
        """Return the number in the file, 0 while there is none."""
        now = time.monotonic()
        if not self.signal_number and now - self._looked >= self._every:
            self._looked = now
            with contextlib.suppress(OSError, ValueError):
                self.signal_number = int(self._path.read_text(encoding="utf-8"))
        return self.signal_number


@contextmanager
def shielded() -> Iterator[None]:
    """Start processes that never hear a request to stop; this one hears afterwards what came meanwhile.

    Some schedulers and service managers signal every process of a job; what serves a run must stay until it has saved.
    """
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in names})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_requests(*more: signal.Signals) -> Iterator[StopRequest]:
    """Note SIGTERM and the first SIGINT instead of dying; the second SIGINT interrupts at once.

    Only the main thread may handle signals; elsewhere the request never comes.

    Args:
        more: further signals that ask for a stop, such as a scheduler's warning.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, *more)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
