"""The process that sends a run's numbers while it trains: ``python -m orchestration.tracking.follow RUN_DIRECTORY``.

A training starts it and never waits for it before its own end: no import of MLflow, no request and no lock of a store
costs the training a step. It reads the journal, ends when the training says so or is gone, and then closes the copy;
what it cannot send until then stays in the journal for ``geta sync``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestration.owner import show_life
from orchestration.tracking.base import Status
from orchestration.tracking.copy import RunCopy
from orchestration.tracking.intent import SENDER, Intent
from orchestration.tracking.store import file_lock
from orchestration.tracking.sync import explain, reconcile
from orchestration.tracking.system import Sampler

EVERY = 5.0
"""Seconds between looks at the journal."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""Seconds for which a store that failed is left alone, doubled each time."""
LAST_SECONDS, LAST_ATTEMPTS = 8.0, 2
"""The end is tried at least this often, and for as many seconds, where the store does not answer."""
LOCKED, LOCKED_OFTEN = "database is locked", 5
"""A SQLite file that many processes write makes one wait: that is told only when it happens again and again."""
UNSENT = 3
"""Exit code when not everything has arrived."""


class Patience:
    """Calls a store that may fail: says so once per outage, and leaves it alone for longer each time."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._pause, self._until = FIRST_PAUSE, 0.0
        self._failures, self._told = 0, False

    def attempt(self, action: Callable[[], object], now: bool = False) -> bool:
        """Call the store unless it is being left alone; return whether it took the call."""
        if not now and time.monotonic() < self._until:
            return False
        try:
            action()
        except Exception as error:  # noqa: BLE001 - no failure of a tracker may end anything but itself
            self._until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._failures += 1
            if not self._told and (LOCKED not in str(error) or self._failures >= LOCKED_OFTEN):
                self._told = True
                say(f"the MLflow store {self._store} does not answer ({explain(error)}); the run goes on without it")
            return False
        if self._told:
            say(f"the MLflow store {self._store} answers again")
        self._failures, self._told, self._pause = 0, False, FIRST_PAUSE
        return True


def follow(folder: Path, ended: Callable[[float], bool], parent: int) -> int:
    """Send what a run writes until it ends.

    Args:
        folder: the run directory.
        ended: waits up to some seconds and returns whether the run has ended.
        parent: process that trains.

    Returns:
        0 when the store has everything.
    """
    intent = Intent.read(folder)
    if intent is None:
        return 0
    copy, sampler = RunCopy(folder), Sampler(parent, folder)
    patience = Patience(intent.store(folder))
    opened = False
    while True:
        with contextlib.suppress(OSError):  # a full disk: the samples are of no consequence
            sampler.sample_if_due()
        show_life(folder)
        if not opened:
            opened = patience.attempt(copy.open)
            if opened:
                with contextlib.suppress(Exception):  # the neighbours' copies are their own concern
                    reconcile(folder.parent, besides=folder)
        else:
            patience.attempt(copy.update)
        if ended(EVERY if opened else 1.0):
            break
    with contextlib.suppress(OSError):
        sampler.sample()  # the run waits for its end to be sent; one that died gives no sample
    intent = Intent.read(folder) or intent
    status: Status = intent.status or "KILLED"  # a process that died without a word has written none
    until, attempts = time.monotonic() + LAST_SECONDS, 1
    while not patience.attempt(lambda: copy.close(status), now=True):
        attempts += 1
        if attempts > LAST_ATTEMPTS and time.monotonic() > until:
            say(f"not everything has reached {intent.store(folder)}; `geta sync {folder}` sends the rest")
            return UNSENT
        time.sleep(1.0)
    return 0


def say(text: str) -> None:
    """Write a line to the error stream that the training gave; it may be gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"geta: {text}\n")
        sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Follow the run in the directory that is named first; the training holds the other end of the input."""
    folder, parent = Path(arguments[0]), os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a signal to the whole job is for the training, which then says its end

    def ended(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], seconds)[0]) or os.getppid() != parent

    with file_lock(folder / SENDER):
        return follow(folder, ended, parent)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Everything is sent and closed. Python's own way out takes seconds after MLflow was imported, and the run waits.
    os._exit(code)
