"""Runs under a real Ray on this machine: right results, also when processes are killed; loopback only; nothing left.

Each start of Ray takes many seconds, so one launch serves several tests. The kills of the launcher, the driver and
Ray's head are marked long.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from orchestration.launchers.processes import MARK
from orchestration.values import write_yaml
from tests.orchestration.distributed.test_workers import last_state
from tests.orchestration.distributed.workers import STEPS, configured

pytestmark = [
    pytest.mark.needs("proc"),
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 800.0
LOOK_EVERY = 1.0
"""Seconds between looks at the processes: each look takes some of the processors' time."""
RAY = {"name": "ray", "workers": 2}
LOOPBACK = ("127.", "::1", "::ffff:127.")


def resolved(folder: Path, name: str, launcher: dict[str, Any]) -> Path:
    """Write the configuration of a run of a float64 net with GroupNorm, in the folder ``name``."""
    tree = configured(folder / name, "group_norm", "run.checkpoint_every=5")
    tree["launcher"] = launcher
    path = folder / f"{name}-{launcher['name']}.yaml"
    path.write_text(write_yaml(tree), encoding="utf-8")
    return path


@dataclass
class Launch:
    """A run started as a user starts it, and what its processes were seen to do."""

    config: Path
    process: subprocess.Popen[bytes] = field(init=False)
    listening: set[tuple[str, str]] = field(default_factory=set)
    titles: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = self.config.with_suffix(".log").open("wb")
        arguments = [sys.executable, "-m", "orchestration.run", "--config", str(self.config)]
        self.process = subprocess.Popen(arguments, stdout=self.log, stderr=self.log, cwd=ROOT)

    def look(self) -> dict[int, str]:
        """Return the titles of the living processes by their ids, and note sockets, titles and tokens."""
        found = {}
        for process in [psutil.Process(self.process.pid), *_marked_by(self.process.pid, self.seen)]:
            try:
                title = " ".join(process.cmdline())
                found[process.pid] = title
                self.seen[process.pid] = process
                self.titles.add(title)
                token = process.environ().get("RAY_AUTH_TOKEN")
                if token and process.pid != self.process.pid:
                    self.tokens.add(token)
                for each in process.net_connections("inet"):
                    if each.status == psutil.CONN_LISTEN:
                        self.listening.add((each.laddr.ip, title[:60]))
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        """Look now and then until a condition holds."""
        end, looked = time.monotonic() + LIMIT, 0.0
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            if time.monotonic() - looked > LOOK_EVERY:
                self.look()
                looked = time.monotonic()
            time.sleep(0.02)

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        end = time.monotonic() + LIMIT
        while self.process.poll() is None and time.monotonic() < end:
            self.look()
            time.sleep(LOOK_EVERY)
        self.close()
        return self.process.wait(5)

    def close(self) -> None:
        """End the run, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def text(self) -> str:
        """Return what was printed."""
        return self.config.with_suffix(".log").read_text(errors="replace")[-6000:]

    def alive(self) -> list[str]:
        """Return the titles of processes of the launch that still run."""
        return [" ".join(each.cmdline()) for each in self.seen.values() if each.is_running() and _runs(each)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _marked_by(launcher: int, known: dict[int, psutil.Process]) -> list[psutil.Process]:
    """Return the launcher's descendants, and whatever carries the same mark as one that was seen before."""
    try:
        children = psutil.Process(launcher).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    marks = set()
    for process in [*children, *known.values()]:
        try:
            marks.add(process.environ().get(MARK))
        except psutil.Error:
            continue
    marks.discard(None)
    found = {process.pid: process for process in children}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) in marks:
                found.setdefault(process.pid, process)
        except psutil.Error:
            continue
    return list(found.values())


def steps_saved(run: Path) -> int:
    """Return how many checkpoints a run has written so far."""
    return len(list((run / "checkpoints").glob("step-*.json")))


def same_result(folder: Path, name: str) -> None:
    """Fail unless a run ended with the masks and bits of the run of one local worker."""
    local, other = last_state(folder / "local")["optimizer"]["qasso"], last_state(folder / name)["optimizer"]["qasso"]
    assert bool(local["pruned"].any())
    for key in ("pruned", "fixed_bits"):
        assert torch.equal(local[key], other[key]), key
    lines = [
        [json.loads(line) for line in (folder / each / "metrics.jsonl").read_text().splitlines()]
        for each in ("local", name)
    ]
    assert [(each["kind"], each["step"]) for each in lines[0]] == [(each["kind"], each["step"]) for each in lines[1]]
    results = [json.loads((folder / each / "result.json").read_text()) for each in ("local", name)]
    for key in ("steps", "group_sparsity", "weight_bits", "activation_bits", "relative_bops", "bytes"):
        assert results[0][key] == results[1][key], key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one local worker."""
    place = tmp_path_factory.mktemp("ray")
    launch = Launch(resolved(place, "local", {"name": "local"}))
    assert launch.wait() == 0, launch.text()
    return place


@pytest.fixture(scope="module")
def killed(folder: Path) -> Launch:
    """A run of two workers, one of which was killed after the first checkpoint."""
    launch = Launch(resolved(folder, "killed", RAY))
    try:
        launch.until(lambda: steps_saved(folder / "killed") > 0)
        workers = [pid for pid, title in launch.look().items() if "RayTrainWorker" in title]
        assert len(workers) == 2, launch.titles
        os.kill(workers[-1], signal.SIGKILL)
        assert launch.wait() == 0, launch.text()
    finally:
        launch.close()
    return launch


def test_a_killed_worker_costs_nothing_but_time(folder: Path, killed: Launch) -> None:
    same_result(folder, "killed")
    attempts = json.loads((folder / "killed" / "launcher" / "attempts.json").read_text())["attempts"]
    tried = [each for each in attempts if each["tried"]]  # a machine under load may need two tries to start Ray
    assert len(tried) == 1 and 5 <= tried[0]["ended"] <= STEPS
    assert "starting again from step" in killed.text() and "goes on after step" in killed.text()
    environment = json.loads((folder / "killed" / "environment.json").read_text())["attempts"]
    assert [each["workers"] for each in environment] == [2, 2]
    assert "orchestration.run" in environment[0]["command"], "the command that the user gave, not Ray's"


def test_everything_listens_on_loopback_alone(killed: Launch) -> None:
    # Processes that end with an attempt may not be met by the one who lists them; several kinds always are.
    assert len({title for _, title in killed.listening}) >= 3, killed.listening
    assert any("RayTrainWorker" in title for _, title in killed.listening), killed.listening
    outside = {each for each in killed.listening if not each[0].startswith(LOOPBACK)}
    assert not outside


def test_no_process_and_no_folder_is_left(killed: Launch) -> None:
    assert len(killed.seen) > 8 and not killed.alive()
    folders = {part for title in killed.titles for part in title.split() if "/tmp/geta-" in part}
    names = {part[part.index("/tmp/geta-") :].split("/")[2] for part in folders}
    assert names and not [name for name in names if Path("/tmp", name).exists()]


def test_tokens_are_shown_nowhere(folder: Path, killed: Launch) -> None:
    assert len(killed.tokens) >= 2, "one for each start of Ray"
    for token in killed.tokens:
        assert len(token) == 64 and not [title for title in killed.titles if token in title]
        for path in (folder / "killed").rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path
    assert not any(token in killed.text() for token in killed.tokens)


def test_sigterm_saves_and_another_launcher_goes_on(folder: Path) -> None:
    launch = Launch(resolved(folder, "stopped", RAY))
    try:
        launch.until(lambda: steps_saved(folder / "stopped") > 0)
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait() == 128 + signal.SIGTERM, launch.text()
    finally:
        launch.close()
    assert "stopped after step" in launch.text() and not launch.alive()
    assert not (folder / "stopped" / "result.json").exists()
    more = Launch(resolved(folder, "stopped", {"name": "local"}))
    assert more.wait() == 0, more.text()
    same_result(folder, "stopped")


def test_what_the_user_must_put_right_is_not_tried_again(folder: Path) -> None:
    launch = Launch(resolved(folder, "wrong", {**RAY, "workers": 3}))
    try:
        assert launch.wait() == 2, launch.text()
    finally:
        launch.close()
    assert "a batch of 32 examples cannot be shared evenly by 3 workers" in launch.text()
    assert not (folder / "wrong").exists() and not launch.alive()


@pytest.mark.long
@pytest.mark.parametrize("victim", ["gcs_server", "ray_driver", "orchestration.run"])
def test_kills_of_ray_and_of_the_launcher(folder: Path, victim: str) -> None:
    name = victim.replace(".", "-")
    launch = Launch(resolved(folder, name, RAY))
    try:
        launch.until(lambda: steps_saved(folder / name) > 0)
        pids = [pid for pid, title in launch.look().items() if victim in title]
        os.kill(pids[0], signal.SIGKILL)
        code = launch.wait()
    finally:
        launch.close()
    if victim == "orchestration.run":
        assert code == -signal.SIGKILL
        until = time.monotonic() + 60
        while launch.alive() and time.monotonic() < until:
            time.sleep(0.2)
        assert not launch.alive()
        again = Launch(resolved(folder, name, RAY))
        assert again.wait() == 0, again.text()
    else:
        assert code == 0, launch.text()
    same_result(folder, name)
