"""Studies of real runs: kill -9 of the coordinator, of workers and of PostgreSQL loses nothing and repeats nothing."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from orchestration.services.postgres import Postgres
from orchestration.services.processes import free_port
from orchestration.services.settings import read_settings
from sweeps.studies.attempts import Attempts
from sweeps.studies.study import Study
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
        deaths = {kill_some_worker(folder, set(), random.Random(0), study.said)}
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
def test_forty_runs_and_twenty_one_kills(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator ten times, workers ten times, PostgreSQL once."""
    place = Path(tempfile.mkdtemp(prefix="geta-study-"))
    place.chmod(0o755)  # PostgreSQL's own user must enter it
    settings = read_settings(
        [f"services.folder={place / 'db'}", f"services.postgres_port={free_port(5700)}", "services.database=optuna"],
        None,
    )
    postgres, folder = Postgres(settings), place / "study"
    chance = random.Random(launcher)
    postgres.up()
    values = [*SHORT, "sweep.methods=[dense,ptq_only]", "sweep.trials=20", "sweep.parallel=2", f"launcher={launcher}"]
    study = Coordinator(folder, [*values, f"sweep.storage={settings.store}"], {"PGPASSFILE": str(postgres.passfile)})
    deaths: set[int] = set()
    try:
        study.start()
        for number in range(10):
            deaths.add(kill_some_worker(folder, deaths, chance, study.said))
            time.sleep(chance.uniform(0, 6))
            study.kill()
            if number == 5:
                _kill_postgres(postgres)
                time.sleep(chance.uniform(0, 4))
                postgres.up()
        study.wait(2400)
        monkeypatch.setenv("PGPASSFILE", str(postgres.passfile))
        check(folder, 40, deaths)
        assert study.kills == 10 and len(deaths) == 10
        attempts = Attempts(folder)
        assert sum(attempts.last().values()) >= 50
    finally:
        study.close()
        postgres.down()
        shutil.rmtree(place, ignore_errors=True)


def _kill_postgres(postgres: Postgres) -> None:
    head = psutil.Process(int((postgres.data / "postmaster.pid").read_text().split()[0]))
    doomed = [head, *head.children(recursive=True)]
    for each in doomed:
        each.kill()
    psutil.wait_procs(doomed, timeout=20)
