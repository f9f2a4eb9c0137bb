"""Attempts at a run, and how they are agreed upon by files that only one process can make.

Everything that must happen once is the making of a file by an exclusive link: taking an attempt (*claim*), and saying
how it ended (*end*). A process that dies leaves either the whole file or none. Of a worker that takes an attempt and a
coordinator that gives it up, one wins, and the other sees that.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestration.owner import SILENCE, process_lives

FOLDER = ".attempts"
State = Literal["complete", "failed", "stopped"]


@dataclass(frozen=True, order=True)
class Attempt:
    """One start of a run.

    Attributes:
        slot: index of the run in the study.
        number: from 1.
    """

    slot: int
    number: int

    def __str__(self) -> str:
        return f"{self.slot:05d}-{self.number}"


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt ended.

    Attributes:
        state: complete; failed, with a reason that another attempt would meet too; stopped, because it was asked to.
        reason: in one line.
        numbers: of the result; accuracies 0 to 1.
    """

    state: State
    reason: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


class Attempts:
    """The files of a study's attempts.

    Args:
        study: folder of the study.
    """

    def __init__(self, study: Path) -> None:
        self.path = study / FOLDER
        self._host = socket.gethostname()

    def last(self) -> dict[int, int]:
        """Return slot -> number of its last attempt, over the whole study."""
        found: dict[int, int] = defaultdict(int)
        for name in os.listdir(self.path) if self.path.is_dir() else []:
            stem, _, kind = name.partition(".")
            slot, _, number = stem.partition("-")
            if kind == "spec" and slot.isdigit() and number.isdigit():
                found[int(slot)] = max(found[int(slot)], int(number))
        return dict(found)

    def order(self, attempt: Attempt, spec: dict[str, Any]) -> None:
        """Write what a worker is to do, before it is started."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._publish(attempt, "spec", spec)

    def spec(self, attempt: Attempt) -> dict[str, Any]:
        """Return what a worker is to do."""
        return self._read(attempt, "spec") or {}

    def claim(self, attempt: Attempt) -> bool:
        """Take an attempt for this process; False when another has it, or it was given up."""
        return self._publish(attempt, "claim", {"host": self._host, "pid": os.getpid(), "time": time.time()})

    def give_up(self, attempt: Attempt) -> bool:
        """Let no process take an attempt any more; False when one has taken it."""
        return self._publish(attempt, "claim", {"given_up": True}) or self.given_up(attempt)

    def given_up(self, attempt: Attempt) -> bool:
        """Whether an attempt was given up before a process took it."""
        return bool((self._read(attempt, "claim") or {}).get("given_up"))

    def claimed(self, attempt: Attempt) -> bool:
        """Whether a process has taken an attempt, or it was given up."""
        return self._file(attempt, "claim").exists()

    def lives(self, attempt: Attempt) -> bool:
        """Whether the process that took an attempt lives: looked up here, else told by its signs of life."""
        claim = self._read(attempt, "claim")
        if claim is None or "pid" not in claim:
            return False
        if claim["host"] == self._host:
            return process_lives(int(claim["pid"]), float(claim["time"]))
        with contextlib.suppress(OSError):
            return time.time() - self._file(attempt, "claim").stat().st_mtime < SILENCE
        return False

    def show_life(self, attempt: Attempt) -> None:
        """Leave a sign of life for those who look from another machine."""
        with contextlib.suppress(OSError):
            os.utime(self._file(attempt, "claim"))

    def publish(self, attempt: Attempt, end: End) -> bool:
        """Say how an attempt ended; the first to say so is believed."""
        return self._publish(attempt, "end", asdict(end))

    def end(self, attempt: Attempt) -> End | None:
        """Return how an attempt ended, None while that is not known."""
        found = self._read(attempt, "end")
        return None if found is None else End(**found)

    def ask_to_stop(self, attempt: Attempt, why: str = "") -> None:
        """Ask a worker to save and leave; the first reason stays."""
        self._publish(attempt, "stop", {"why": why})

    def stop_asked(self, attempt: Attempt) -> str | None:
        """Return why a worker was asked to stop; None if it was not."""
        found = self._read(attempt, "stop")
        return None if found is None else str(found.get("why", ""))

    def lost(self, slot: int, last: int) -> int:
        """Return how many attempts of a run died without a word after a process had taken them."""
        tries = [Attempt(slot, number) for number in range(1, last + 1)]
        return sum(self.end(each) is None and not self.given_up(each) for each in tries)

    def _file(self, attempt: Attempt, kind: str) -> Path:
        return self.path / f"{attempt}.{kind}"

    def _read(self, attempt: Attempt, kind: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self._file(attempt, kind).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found if isinstance(found, dict) else None

    def _publish(self, attempt: Attempt, kind: str, values: dict[str, Any]) -> bool:
        """Make a file with its whole content, or not at all; False when it is there already.

        The name itself is not synced: where a power failure takes it back, the run directory still says how far it is.
        """
        partial = self.path / f".{attempt}.{kind}.{secrets.token_hex(4)}"
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(values, file)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, self._file(attempt, kind))
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True
