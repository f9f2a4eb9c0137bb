"""A study of forty runs on PostgreSQL: kill -9 of its coordinator and of workers, ten times each, and of PostgreSQL."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import psutil

from orchestration.services.postgres import Postgres
from orchestration.services.settings import read_settings
from sweeps.studies.attempts import Attempts
from tests.ports import own_port
from tests.sweeps.killing import SHORT, Coordinator, Workers, check, kill_some_worker


def forty_runs_and_twenty_one_kills(launcher: Sequence[str], workers: Workers, parallel: int = 2) -> None:
    """Run the study and kill; in the end there are forty results, each of one run to its end.

    Args:
        launcher: keys of the launcher.
        workers: finds the processes of the runs.
        parallel: runs at once.
    """
    place = Path(tempfile.mkdtemp(prefix="geta-study-"))
    place.chmod(0o755)  # PostgreSQL's own user must enter it
    settings = read_settings(
        [f"services.folder={place / 'db'}", f"services.postgres_port={own_port(5700)}", "services.database=optuna"],
        None,
    )
    postgres, folder = Postgres(settings), place / "study"
    chance = random.Random(str(launcher))
    postgres.up()
    values = [*SHORT, "sweep.methods=[dense,ptq_only]", "sweep.trials=20", f"sweep.parallel={parallel}", *launcher]
    study = Coordinator(folder, [*values, f"sweep.storage={settings.store}"], {"PGPASSFILE": str(postgres.passfile)})
    deaths: set[int] = set()
    try:
        study.start()
        for number in range(10):
            deaths.add(kill_some_worker(folder, deaths, chance, study.said, workers))
            time.sleep(chance.uniform(0, 6))
            study.kill()
            if number == 5:
                _kill_postgres(postgres)
                time.sleep(chance.uniform(0, 4))
                postgres.up()
        study.wait(2400)
        with mock.patch.dict(os.environ, PGPASSFILE=str(postgres.passfile)):
            check(folder, 40, deaths)
        assert study.kills == 10 and len(deaths) == 10
        assert sum(Attempts(folder).last().values()) >= 50
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
