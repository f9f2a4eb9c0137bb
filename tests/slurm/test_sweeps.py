"""Studies as Slurm jobs: the same trials and values as here, and a coordinator that is a job itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.launchers import scheduler
from sweeps.cli_sweep import main
from sweeps.studies.study import Study
from tests.slurm.jobs import LAUNCHER, until
from tests.sweeps.forty import forty_runs_and_twenty_one_kills
from tests.sweeps.killing import SHORT, Coordinator, job_workers

pytestmark = [pytest.mark.needs("slurm"), pytest.mark.timeout(900)]
SWEEP = ("sweep.methods=[dense]", "sweep.trials=3", "sweep.parallel=2", "sweep.synchronous=true")


def test_a_study_gives_the_trials_and_values_of_a_local_one(tmp_path: Path) -> None:
    """The coordinator is killed once, while jobs go on."""
    folder = tmp_path / "slurm"
    study = Coordinator(folder, [*SHORT, *SWEEP, *LAUNCHER])
    try:
        study.start()
        until(lambda: len(list(folder.glob("*/launcher/job.json"))) == 2, "two jobs")
        study.kill()
        study.wait(600)
    finally:
        study.close()
    here = Study(
        "here", SHORT, methods=["dense"], trials=3, parallel=2, synchronous=True, output=str(tmp_path / "here")
    )
    expected = [(t.number, t.params, t.values) for t in here.run(quiet=True)]
    trials = Study.open(folder).trials()
    assert [(t.number, t.params, t.values) for t in trials] == expected
    jobs = [t.result.environment["slurm"]["job"] for t in trials]
    assert len(set(jobs)) == 3 and jobs[0].partition("_")[0] == jobs[1].partition("_")[0], "the first two are an array"
    assert {t.about.get("attempts", 1) for t in trials} == {1}


def test_the_coordinator_is_a_job_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "study"
    given = [
        "study=mine",
        f"sweep.output={folder}",
        *SHORT,
        *SWEEP[:1],
        "sweep.trials=2",
        "sweep.parallel=1",
        *LAUNCHER,
    ]
    assert main([*given, "sweep.coordinator=slurm"]) == 0
    said = capsys.readouterr().out
    number = said.split("submitted as job ")[1].split(";")[0]
    try:
        until(lambda: len(list(folder.glob("*/result.json"))) == 2, "two results", 500)
        until(lambda: not any(job.waits or job.runs for job in scheduler.jobs([number]).values()), "its end", 120)
    finally:
        left = [job.number for job in scheduler.jobs([number]).values() if job.waits or job.runs]
        if left:
            scheduler.cancel(left)
    assert [trial.state for trial in Study.open(folder).trials()] == ["complete"] * 2
    record = json.loads(next(folder.glob("*/launcher/job.json")).read_text())
    assert record["job"] != number


DOOMED = """\
import os

def build():
    os.kill(os.getpid(), 9)
"""


@pytest.mark.long
def test_a_run_that_keeps_dying_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job dies without a word; after sweep.requeues further starts the run has failed."""
    (tmp_path / "doomed.py").write_text(DOOMED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    values = ["task=digits", "model=doomed:build", "run.steps=10", "run.threads=1", "tracker=jsonl", *LAUNCHER]
    study = Study("doomed", values, methods=["dense"], trials=1, output=str(tmp_path / "study"))
    (trial,) = study.run(quiet=True)
    assert (trial.state, trial.about["attempts"]) == ("failed", 2)
    assert trial.about["reason"] == "its process died without a word, 2 times"


@pytest.mark.long
@pytest.mark.needs("postgresql")
@pytest.mark.timeout(3600)
def test_forty_jobs_and_twenty_one_kills() -> None:
    forty_runs_and_twenty_one_kills(LAUNCHER, job_workers, parallel=4)
