"""A run that is killed at any time, also while it writes a checkpoint, ends with the same bits as one that is not.

Real processes, SIGKILL. GETA_KILLS sets how many of each kind are tried (3 and 1 by default).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from orchestration.files import PARTIAL
from tests.orchestration.small import differences, outcome, start, write_resolved

KILLS = int(os.environ.get("GETA_KILLS", "3"))
KILLS_IN_WRITE = min(max(KILLS // 3, 1), 5)
LIMIT = 240.0
"""Seconds that one run may take on a loaded machine."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], float]:
    """The resolved configuration, what an uninterrupted run gives, and how long it takes."""
    folder = tmp_path_factory.mktemp("whole")
    resolved = write_resolved(folder, "run.steps=60", "run.checkpoint_every=4", "method.activation_bits=[4,8]")
    started = time.monotonic()
    process = start(resolved, folder / "run")
    assert process.wait(LIMIT) == 0, (folder / "run.log").read_text()
    return resolved, outcome(folder / "run"), time.monotonic() - started


def finish_and_compare(resolved: Path, place: Path, wanted: dict[str, Any]) -> None:
    """Let a killed run go on to its end and compare everything bit for bit."""
    process = start(resolved, place)
    assert process.wait(LIMIT) == 0, place.with_suffix(".log").read_text()
    assert differences(wanted, outcome(place)) == []
    assert not list(place.rglob(f"*{PARTIAL}")), "what a killed write left is cleared"


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_uniformly_drawn_time(
    uninterrupted: tuple[Path, dict[str, Any], float], tmp_path: Path, number: int
) -> None:
    resolved, wanted, seconds = uninterrupted
    # Drawn within the number-th part of the run, so that few draws also reach its beginning and its end.
    moment = seconds * (number + random.Random(number).random()) / KILLS
    place = tmp_path / "run"
    while killed_at(start(resolved, place), moment) == 0:
        shutil.rmtree(place)  # it was quicker than the first run, and had ended
        moment *= 0.7
    finish_and_compare(resolved, place, wanted)


@pytest.mark.parametrize("number", range(KILLS_IN_WRITE))
def test_killed_while_a_checkpoint_is_written(
    uninterrupted: tuple[Path, dict[str, Any], float], tmp_path: Path, number: int
) -> None:
    resolved, wanted, _ = uninterrupted
    place = tmp_path / "run"
    process = start(resolved, place)
    assert killed_in_a_write(process, place / "checkpoints", skip=2 * number), place.with_suffix(".log").read_text()
    assert list((place / "checkpoints").glob(f"*{PARTIAL}"))
    finish_and_compare(resolved, place, wanted)


def killed_at(process: subprocess.Popen[bytes], moment: float) -> int:
    """Kill a process after some seconds and return its exit code, which is 0 if it had ended before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    process.kill()
    return process.wait()


def killed_in_a_write(process: subprocess.Popen[bytes], folder: Path, skip: int) -> bool:
    """Kill the process while a half-written checkpoint lies in the folder; False if it ended before.

    It is stopped first: only if the file is still there once the process stands is the kill inside the write.
    """
    until = time.monotonic() + LIMIT
    seen: set[str] = set()
    while process.poll() is None and time.monotonic() < until:
        partial = next(iter(listed(folder)), None)
        if partial is None or partial in seen:
            continue
        if len(seen) < skip:
            seen.add(partial)
            continue
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        if listed(folder):
            process.kill()
            process.wait()
            return True
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    return False


def listed(folder: Path) -> list[str]:
    """Return the names of half-written files, by the quickest means there is."""
    try:
        return [name for name in os.listdir(folder) if name.endswith(PARTIAL)]
    except FileNotFoundError:
        return []
