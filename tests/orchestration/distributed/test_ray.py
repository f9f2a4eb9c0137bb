"""Runs under a real Ray on this machine: right results, also when processes are killed; loopback only; nothing left.

Each start of Ray takes many seconds, so one launch serves several tests. The kills of the launcher, the driver and
Ray's head are marked long; `python -m tests.kills` draws their moments and makes a table.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.orchestration.distributed.launches import RAY, launch, local_run, resolved, same_result, steps_saved
from tests.orchestration.distributed.workers import STEPS
from tests.orchestration.tracked import copies, history, written
from tests.orchestration.watched import Watched, outside

pytestmark = [
    pytest.mark.needs("proc"),
    pytest.mark.timeout(900),
]

HEAD, DRIVER, LAUNCHER = "gcs_server", "orchestration.launchers.ray_driver", "orchestration.run"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one local worker."""
    place = tmp_path_factory.mktemp("ray")
    local_run(place)
    return place


@pytest.fixture(scope="module")
def killed(folder: Path) -> Watched:
    """A run of two workers that is copied to MLflow, one of which was killed after the first checkpoint."""
    run = launch(resolved(folder, "killed", RAY, "tracker=mlflow", pause=0.1))
    try:
        run.until(lambda: steps_saved(folder / "killed") > 0)
        workers = run.find("ray::RayTrainWorker")
        assert len(workers) == 2, run.titles
        os.kill(workers[-1], signal.SIGKILL)
        assert run.wait() == 0, run.text()
    finally:
        run.close()
    return run


def test_a_killed_worker_costs_nothing_but_time(folder: Path, killed: Watched) -> None:
    same_result(folder, "killed")
    attempts = json.loads((folder / "killed" / "launcher" / "attempts.json").read_text())["attempts"]
    tried = [each for each in attempts if each["tried"]]  # a machine under load may need two tries to start Ray
    assert len(tried) == 1 and 5 <= tried[0]["ended"] <= STEPS
    assert "starting again from step" in killed.text() and "goes on after step" in killed.text()
    environment = json.loads((folder / "killed" / "environment.json").read_text())["attempts"]
    assert [each["workers"] for each in environment] == [2, 2]
    assert "orchestration.run" in environment[0]["command"], "the command that the user gave, not Ray's"


def test_its_copy_in_mlflow_has_every_number_once(folder: Path, killed: Watched) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    (copy,) = copies(uri)
    assert copy.info.status == "FINISHED"
    for key in ("train/loss", "val/accuracy"):
        assert history(uri, copy, key) == written(folder / "killed", key) and len(written(folder / "killed", key)) > 1


def test_everything_listens_on_loopback_alone(killed: Watched) -> None:
    # The system's tables of sockets are read fifty times a second: what is missed did not live that long.
    who = " ".join(title for _, title in killed.listening)
    for part in ("gcs_server", "raylet", "ray::RayTrainWorker"):
        assert part in who, killed.listening
    assert not outside(killed.listening)


def test_no_process_and_no_folder_is_left(killed: Watched) -> None:
    assert len(killed.processes) > 8 and not killed.alive()
    folders = {part for title in killed.titles for part in title.split() if "/tmp/geta-" in part}
    names = {part[part.index("/tmp/geta-") :].split("/")[2] for part in folders}
    assert names and not [name for name in names if Path("/tmp", name).exists()]


def test_tokens_are_shown_nowhere(folder: Path, killed: Watched) -> None:
    assert len(killed.secrets) >= 2, "one for each start of Ray"
    for token in killed.secrets:
        assert len(token) == 64 and not [title for title in killed.titles if token in title]
        # The files of all runs here, their logs and the MLflow store.
        for path in folder.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path


@pytest.mark.long
@pytest.mark.parametrize("victim", [HEAD, DRIVER, LAUNCHER])
def test_kills_of_ray_and_of_the_launcher(folder: Path, victim: str) -> None:
    name = f"kill-{[HEAD, DRIVER, LAUNCHER].index(victim)}"
    run = launch(resolved(folder, name, RAY, pause=0.1))
    try:
        run.until(lambda: steps_saved(folder / name) > 0)
        os.kill(run.find(victim)[0], signal.SIGKILL)
        code = run.wait()
    finally:
        run.close()
    if victim == LAUNCHER:
        assert code == -signal.SIGKILL
        until = time.monotonic() + 60
        while run.alive() and time.monotonic() < until:
            time.sleep(0.2)
        assert not run.alive()
        again = launch(resolved(folder, name, RAY, pause=0.1))
        assert again.wait() == 0, again.text()
    else:
        assert code == 0, run.text()
    same_result(folder, name)
