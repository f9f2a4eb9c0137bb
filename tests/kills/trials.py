"""One disturbance each: start a training, disturb it at a drawn moment, let it come to its end, look what is amiss."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.cli_services import main as services
from orchestration.files import PARTIAL
from orchestration.launchers.requeue import saved_step
from orchestration.services.processes import free_port
from orchestration.services.settings import read_settings
from tests.kills import trainings
from tests.kills.disk import fill, make_room, small_disk
from tests.orchestration.small import outcome
from tests.orchestration.test_services import kill
from tests.orchestration.watched import Watched

RAY = {"name": "ray", "workers": 2}
PROCESSES = {
    "worker": "ray::RayTrainWorker",
    "head": "gcs_server",
    "driver": "orchestration.launchers.ray_driver",
    "launcher": "orchestration.run",
}
"""Whom to kill under Ray: a word of the title."""
SERVERS = {"tracking server": "MLflow", "PostgreSQL": "PostgreSQL"}
DISK = "full disk"
KINDS = (*PROCESSES, *SERVERS, DISK)
DISK_MEGABYTES = 24
LONGEST_OUTAGE = 8.0
"""Seconds for which a killed server stays away, at most."""
LEAVE = 3.0
"""Seconds that processes may still be seen after the end of the run that they belong to."""
ENDS = 60.0
"""Seconds that the processes of a killed launcher get to end."""


@dataclass
class Trial:
    """What happened once."""

    kind: str
    number: int
    moment: float = 0.0
    """Seconds between the start of what was killed, or of the training, and the disturbance."""
    step: int = 0
    """Of the last checkpoint at that moment."""
    needed: str = "nothing"
    """What the user had to do."""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass
class Reference:
    """A training that nothing disturbed."""

    wanted: dict[str, Any]
    seconds: float
    """From its start to its end."""
    lives: dict[str, float]
    """Seconds that each of its processes lived."""


def undisturbed(folder: Path, launcher: dict[str, Any] | None) -> Reference:
    """Let a training come to its end, and note how long its processes live."""
    run, began = trainings.start(trainings.resolved(folder, "undisturbed", launcher=launcher)), time.monotonic()
    seen: dict[str, float] = {}
    while run.process.poll() is None:
        for name, word in PROCESSES.items():
            if name not in seen and run.find(word):
                seen[name] = time.monotonic()
        time.sleep(0.5)
    if run.wait():
        raise RuntimeError(run.text())
    end = time.monotonic()
    return Reference(outcome(folder / "undisturbed"), end - began, {name: end - at for name, at in seen.items()})


def end_of_process(folder: Path, trial: Trial, draw: random.Random, reference: Reference) -> None:
    """Kill a process of a run of two workers under Ray."""
    config = trainings.resolved(folder, "run", launcher=RAY)
    place, word = folder / "run", PROCESSES[trial.kind]
    run = trainings.start(config)
    try:
        while not run.find(word):
            time.sleep(0.3)
        trial.moment = draw.uniform(0.0, reference.lives[trial.kind])
        _pause(trial.moment, run)
        trial.step = saved_step(place / "checkpoints")
        found = run.find(word)
        if not found:
            raise TooLate
        os.kill(draw.choice(found) if trial.kind == "worker" else found[0], signal.SIGKILL)
        code = run.wait()
    finally:
        run.close()
    if trial.kind == "launcher":
        trial.needed = "the same command"
        _until_gone(run)
        code = _again(config, trial)
    if code:
        trial.faults.append(f"exit code {code}: {run.text()[-300:]}")
    _until_gone(run, LEAVE)
    trial.faults += [f"left behind: {title}" for title in run.alive()]
    trial.faults += trainings.faults(place, reference.wanted, trainings.store_of(folder))


def full_disk(folder: Path, trial: Trial, draw: random.Random, reference: Reference) -> None:
    """Fill the disk of a run and of its MLflow store, so that the next checkpoint does not fit."""
    with small_disk(folder / "disk", DISK_MEGABYTES) as disk:
        config = trainings.resolved(folder, "run", place=disk)
        place = disk / "run"
        run = trainings.start(config)
        try:
            trial.moment = draw.uniform(0.0, reference.seconds)
            _pause(trial.moment, run)
            if run.process.poll() is not None:
                raise TooLate
            trial.step = saved_step(place / "checkpoints")
            states = [path.stat().st_size for path in (place / "checkpoints").glob("*.pt")]
            fill(disk, draw.randrange(max(states, default=4096)))
            code = run.wait()
        finally:
            run.close()
        said = [line for line in run.text().splitlines() if line.startswith("geta: there must be room in")]
        if (code, len(said)) != (2, 1) and not (place / "result.json").is_file():
            trial.faults.append(f"exit code {code}: {run.text()[-300:]}")
        make_room(disk)
        trial.needed = "room, and the same command"
        _again(config, trial)
        trial.faults += [f"left behind: {path.name}" for path in place.rglob(f"*{PARTIAL}")]
        trial.faults += trainings.faults(place, reference.wanted, trainings.store_of(disk))


def end_of_server(folder: Path, trial: Trial, draw: random.Random, reference: Reference, team: list[str]) -> None:
    """Kill a server of `geta services` while a run sends its numbers there; start it again some seconds later."""
    settings = read_settings(team, None)
    run = trainings.start(trainings.resolved(folder, "run", f"tracker.uri={settings.address}"))
    try:
        trial.moment = draw.uniform(0.0, reference.seconds)
        _pause(trial.moment, run)
        if run.process.poll() is not None:
            raise TooLate
        trial.step = saved_step(folder / "run" / "checkpoints")
        kill(settings, SERVERS[trial.kind])
        _pause(draw.uniform(0.0, LONGEST_OUTAGE), run)
        if services(["up", *team]):
            trial.faults.append("geta services up failed")
        code = run.wait()
    finally:
        run.close()
        services(["up", *team])
    sent = (folder / "run" / "mlflow.sent.json").is_file()
    trial.needed = "geta services up" if sent else "geta services up; geta sync"
    if code:
        trial.faults.append(f"exit code {code}: {run.text()[-300:]}")
    trial.faults += trainings.faults(folder / "run", reference.wanted, settings.address)


class TooLate(Exception):  # noqa: N818 - no error: the moment is drawn again
    """The training had ended before the moment came."""


def tried(folder: Path, trial: Trial, act: Callable[[Path, Trial, random.Random], None]) -> Trial:
    """Disturb a training until a moment was drawn that meets it."""
    draw, began = random.Random(f"{trial.kind} {trial.number}"), time.monotonic()
    for attempt in range(10):
        try:
            act(folder / f"{trial.kind.replace(' ', '-')}-{trial.number}-{attempt}", trial, draw)
            break
        except TooLate:
            continue
    else:
        trial.faults.append("no moment met the training")
    trial.seconds = time.monotonic() - began
    return trial


def team_arguments(folder: Path) -> list[str]:
    """Return the arguments of services of their own in a folder."""
    first = free_port(5900)
    return [
        f"services.folder={folder / 'team'}",
        f"services.postgres_port={first}",
        f"services.mlflow_port={free_port(first + 1)}",
        "services.workers=1",
    ]


def _pause(seconds: float, run: Watched) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and run.process.poll() is None:
        time.sleep(0.02)


def _until_gone(run: Watched, patience: float = ENDS) -> None:
    until = time.monotonic() + patience
    while run.alive() and time.monotonic() < until:
        time.sleep(0.2)


def _again(config: Path, trial: Trial) -> int:
    run = trainings.start(config)
    code = run.wait()
    if code:
        trial.faults.append(f"the second time exit code {code}: {run.text()[-300:]}")
    return code
