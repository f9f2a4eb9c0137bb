"""Studies of real runs: kill -9 of the coordinator, of workers and of PostgreSQL loses nothing and repeats nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sweeps.studies.study import Study
from tests.sweeps.forty import forty_runs_and_twenty_one_kills
from tests.sweeps.killing import SHORT, Coordinator, check, kill_some_worker, until, workers


def ends(folder: Path) -> int:
    """Return how many attempts have said how they ended."""
    return len(list((folder / ".attempts").glob("*.end")))


@pytest.mark.timeout(600)
def test_kills_of_a_short_study(tmp_path: Path) -> None:
    """The coordinator twice, once while runs go on and once while one ends; a worker once."""
    folder = tmp_path / "study"
    study = Coordinator(folder, [*SHORT, "sweep.methods=[dense]", "sweep.trials=4", "sweep.parallel=2"])
    try:
        study.start()
        until(lambda: len(workers(folder)) == 2, study.said, 200)
        study.kill()
        deaths = {kill_some_worker(folder, set(), random.Random(0), study.said, workers)}
        until(lambda: ends(folder) > 0, study.said, 200)
        study.kill()
        study.wait(400)
    finally:
        study.close()
    trials = check(folder, 4, deaths)
    assert study.kills == 2
    assert [trial.number for trial in trials if trial.about.get("attempts", 1) > 1] == sorted(deaths)
    # What was interrupted has the numbers of a run that was not: setting 0 again, alone and never killed.
    alone = Study("alone", SHORT, methods=["dense"], trials=1, output=str(tmp_path / "alone"))
    (again,) = alone.run(quiet=True)
    assert again.values == trials[0].values


@pytest.mark.long
@pytest.mark.needs("postgresql")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_forty_runs_and_twenty_one_kills(launcher: str) -> None:
    forty_runs_and_twenty_one_kills([f"launcher={launcher}"], workers)
