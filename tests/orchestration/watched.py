"""A command, everything that it starts, and what those processes are seen to do: sockets, titles, tokens.

All of them carry a mark in their environment. The system's tables of sockets are read many times a second, which costs
next to nothing; only for a socket that is new do the processes have to be asked whose it is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "GETA_TEST_WATCHED"
SOCKETS_EVERY, PROCESSES_EVERY = 0.02, 0.5
"""Seconds between looks at the system's sockets, and at the processes."""
OWNER_WITHIN = 5.0
"""Seconds for which the owner of a new socket is looked for: those of other commands have none here."""
LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp (proc(5))."""
LIMIT = 800.0


@dataclass(frozen=True)
class Process:
    """One process, by its id and when it was started: ids are used again."""

    pid: int
    started: str
    title: str = field(compare=False)

    def runs(self) -> bool:
        """Whether it still runs; one that has ended and was not waited for does not."""
        return self.started == _started(self.pid)


@dataclass
class Watched:
    """A command that runs and is watched until it is closed.

    Args:
        command: its words.
        log: takes what it prints.
        environment: added to that of this process.
        cwd: working directory.
    """

    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    processes: set[Process] = field(default_factory=set)
    titles: set[str] = field(default_factory=set)
    secrets: set[str] = field(default_factory=set)
    """Values of RAY_AUTH_TOKEN that processes had."""
    listening: set[tuple[str, str]] = field(default_factory=set)
    """Addresses, as in /proc/net/tcp, and the titles of who listened there."""

    def __post_init__(self) -> None:
        self._mark = f"{MARK}={secrets.token_hex(8)}"
        name, _, value = self._mark.partition("=")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.cwd,
                env={**os.environ, **self.environment, name: value},
            )
        self._first_seen: dict[str, float] = {}
        self._attributed: set[str] = set()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds while the command runs."""
        end = time.monotonic() + LIMIT
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)

    def wait(self) -> int:
        """Wait for the command's end and return its exit code."""
        try:
            return self.process.wait(LIMIT)
        finally:
            self.close()

    def close(self) -> None:
        """End the command, if it has not ended, and the watching."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._over.set()
        self._watcher.join()

    def text(self) -> str:
        """Return what was printed."""
        return self.log.read_text(errors="replace")[-6000:]

    def alive(self) -> list[str]:
        """Return the titles of the processes that still run."""
        return [each.title for each in self.processes if each.runs()]

    def find(self, *words: str) -> list[int]:
        """Return the ids of running processes by what stands in the names of their titles' parts, the oldest first."""
        found = [
            each
            for each in self._look()
            if any(word in Path(part).name for part in each.title.split() for word in words)
        ]
        return [each.pid for each in sorted(found, key=lambda each: int(each.started))]

    def _look(self) -> list[Process]:
        """Find the processes that carry the mark."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                if self._mark not in environment:
                    continue
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it has just ended
                continue
            started = _started(int(entry.name))
            if started is None:
                continue
            found.append(Process(int(entry.name), started, title))
            self.titles.add(title)
            self.secrets.update(each.partition("=")[2] for each in environment if each.startswith("RAY_AUTH_TOKEN="))
        self.processes.update(found)
        return found

    def _watch(self) -> None:
        looked = 0.0
        while not self._over.is_set():
            there, now = _listening(), time.monotonic()
            new = there.keys() - self._first_seen.keys()
            self._first_seen.update(dict.fromkeys(new, now))
            if new or now - looked >= PROCESSES_EVERY:
                recent = {inode for inode in there if now - self._first_seen[inode] < OWNER_WITHIN}
                self._attribute({inode: there[inode] for inode in recent - self._attributed})
                looked = now
            self._over.wait(SOCKETS_EVERY)

    def _attribute(self, new: Mapping[str, str]) -> None:
        for process in self._look():
            folder = Path(f"/proc/{process.pid}/fd")
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        inode = os.readlink(folder / name).removeprefix("socket:[").removesuffix("]")
                        if inode in new:
                            self.listening.add((new[inode], process.title))
                            self._attributed.add(inode)


def _started(pid: int) -> str | None:
    """Return when a process was started, in ticks since the boot; None where it has ended, or its memory is gone."""
    try:
        # The name before it may hold spaces and brackets (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, started, memory = fields[0], fields[19], fields[20]
    # On a busy machine it takes the system a while to take a process down whose memory is gone already.
    return None if state in "ZX" or memory == "0" else started


def _listening() -> dict[str, str]:
    """Return the address of every listening TCP socket of the system by its inode."""
    found = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN:
                    found[fields[9]] = readable(fields[1])
    return found


def readable(text: str) -> str:
    """Return the address of a row of /proc/net/tcp or tcp6 as it is usually written, without the port.

    It is written in words of four bytes, each in the machine's order of bytes.
    """
    import ipaddress
    import sys

    digits = text.partition(":")[0]
    words = [bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8)]
    ordered = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return str(ipaddress.ip_address(ordered))


def outside(listening: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those that other machines could reach."""
    import ipaddress

    def is_inside(text: str) -> bool:
        address = ipaddress.ip_address(text)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback

    return {each for each in listening if not is_inside(each[0])}
