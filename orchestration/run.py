"""One run, in reading order: check, assemble, resume, train, finish, measure, record.

``python -m orchestration.run --config resolved.yaml tracker=jsonl`` needs torch, numpy, scipy, safetensors and PyYAML.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestration.assemble import assemble
from orchestration.checkpoint import CheckpointStore
from orchestration.conclude import conclude
from orchestration.config import Config
from orchestration.files import room_for
from orchestration.loop import Surroundings, train
from orchestration.progress import Progress, Silent, open_progress
from orchestration.records import STARTED_FROM, environment
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError, StopRequest
from orchestration.state import Session, scatter
from orchestration.tracking import open_trackers, unfinished_trackers
from orchestration.tracking.base import Status, Tracker
from orchestration.tracking.jsonl import Journal
from orchestration.weights import weights_digest
from orchestration.world import World

GOES_ON = "make room, then the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Setting:
    """What a launcher gives to an attempt."""

    world: World = field(default_factory=World)
    """The workers."""
    show: Callable[[int, int, str], Progress] = open_progress
    """Opens the display of the progress, from total steps, steps done and a title."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the record of the attempt says besides, or instead of, what this process knows of itself."""


def run(config: Config) -> RunResult:
    """Train, compress and measure one model; go on where an earlier attempt of the same run stopped.

    Args:
        config: everything that decides the run, from ``orchestration.compose``, ``load`` or ``Config.from_dict``.

    Returns:
        The numbers that ``result.json`` in the run directory holds.

    Raises:
        GetaError: for whatever the user can put right; nothing is left behind when it is found before training.
        StoppedError: when SIGTERM or SIGINT asked for a stop; the next attempt goes on from there.
    """
    from orchestration.launchers import launcher

    place = RunDirectory.of(config)
    place.check(config)
    if place.result.is_file():
        return finished_before(config, place)
    with room_for(place.path, GOES_ON):
        return launcher(config.launcher).launch(config, place)


def attempt(config: Config, place: RunDirectory, stop: StopRequest, setting: Setting | None = None) -> RunResult | None:
    """Do one worker's part of a run: all of it where there is one worker, else each worker makes this call.

    Args:
        config: of the run.
        place: its directory, which all workers see.
        stop: the request to stop that this worker hears of; it is enough if one of them does.
        setting: the other workers, and where progress goes; this process alone and its terminal if not given.

    Returns:
        The result; None to all but the leader.
    """
    started, setting = time.perf_counter(), setting or Setting()
    session = assemble(config, setting.world)
    checkpoints, journal = CheckpointStore(place.checkpoints), Journal(place.path)
    if not session.world.leads:
        resume(session, checkpoints, journal)
        train(session, Surroundings(journal, (), checkpoints, Silent(), stop))
        session.world.follow_leader()  # which compresses and measures the model
        return None
    start = config.model.weights
    about = {**environment(session.compute.name()), **setting.about}
    about |= {} if start is None else {STARTED_FROM: weights_digest(start)}
    with place.lock():
        place.create(config, about)
        notes = resume(session, checkpoints, journal)
        with (
            setting.show(session.total_steps, session.step, place.path.name) as progress,
            tracked(config, place, journal, about) as trackers,
        ):
            tell(progress, place, session, notes)
            around = Surroundings(journal, trackers, checkpoints, progress, stop)
            train(session, around)
            result, files = conclude(session, place, around, started, about)
            for tracker in trackers:
                tracker.files(files)
            result.save(place.result)
            journal.close()
    session.world.follow_leader()
    return result


def finished_before(config: Config, place: RunDirectory) -> RunResult:
    """Return the result of a run that is complete; a tracker that missed its end is brought up to date."""
    result = RunResult.load(place.result)
    trackers = unfinished_trackers(config, place.path)
    for tracker in trackers:
        tracker.start(config.flat(), tags(config, place, result.environment))
        tracker.send(Journal(place.path).lines())
        tracker.files([place.result])
        tracker.finish("FINISHED")
    return result


def resume(session: Session, checkpoints: CheckpointStore, journal: Journal) -> list[str]:
    """Put the last good checkpoint back, if there is one; all workers take the leader's.

    Returns:
        What the user should know.

    Raises:
        ArtifactError: when there are checkpoints and none is good.
    """
    restored = checkpoints.restore() if session.world.leads else None
    name = session.world.tell(restored.path.name if restored else "")
    if restored is None and name:
        restored = checkpoints.read(name)
    if session.world.leads:
        journal.open_at(restored.state["journal"] if restored else 0)
    if restored is None:
        return []
    scatter(session, restored.state)
    damaged = [f"ignored: {reason}" for reason in restored.damaged]
    return [*damaged, f"goes on after step {session.step}, from {restored.path.name}"]


@contextmanager
def tracked(config: Config, place: RunDirectory, journal: Journal, about: dict[str, Any]) -> Iterator[list[Tracker]]:
    """Open the trackers, and close them with the right status whatever happens."""
    trackers = open_trackers(config, place.path)
    status: Status = "FAILED"
    try:
        for tracker in trackers:
            tracker.start(config.flat(), tags(config, place, about))
            tracker.send(journal.lines())
        yield trackers
        status = "FINISHED"
    except (StoppedError, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        for tracker in trackers:
            tracker.finish(status)


def tags(config: Config, place: RunDirectory, about: Any) -> dict[str, str]:
    """Return what a tracker is told about a run besides its configuration."""
    code = about.get("code") or {}
    return {
        "geta.digest": config.digest(),
        "geta.directory": str(place.path),
        "geta.study": config.tracker.experiment,
        "geta.method": config.method.name,
        "geta.model": config.model.name,
        "geta.task": config.task.name,
        "geta.seed": str(config.run.seed),
        "geta.commit": str(code.get("commit", "unknown")),
        "geta.command": about.get("command", ""),
    }


def tell(progress: Progress, place: RunDirectory, session: Session, notes: Sequence[str]) -> None:
    """Say what is about to happen."""
    device = f"{session.compute.name()}, {session.config.run.precision}"
    if session.world.size > 1:
        device = f"{session.world.size} workers, each on {device}"
    progress.say(f"{place.path}: {session.total_steps} steps on {device}")
    for note in notes:
        progress.say(note)


if __name__ == "__main__":
    from orchestration.cli_run import main

    sys.exit(main(sys.argv[1:], "python -m orchestration.run"))
