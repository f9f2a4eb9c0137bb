"""Runs as jobs of a real Slurm cluster: the same results as here, whatever interrupts them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from geta_core.errors import ConfigError, GetaError
from orchestration.cli_jobs import cancel, logs, status
from orchestration.launchers.slurm import submit, submit_many, wait
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError
from tests.orchestration.small import differences, outcome
from tests.slurm.jobs import config, log, run_here, slurm, standing, starts, until, until_saved

pytestmark = [pytest.mark.needs("slurm"), pytest.mark.timeout(600)]

NET = """\
from torch import nn

def build(num_classes: int = 10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""
BROKEN = """\
import os

import torch
from torch import nn

STEPS = []

class Net(nn.Sequential):
    def forward(self, x):
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            STEPS.append(x.shape)
            if len(STEPS) > 20:
                raise RuntimeError(f"boom in job {os.environ['SLURM_JOB_ID']}")
        return super().forward(x)

def build(num_classes: int = 10):
    return Net(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


def test_a_job_gives_the_same_bits_as_a_local_run(
    tmp_runs: Path, tmp_path: Path, golden: Callable[[Path, str], None]
) -> None:
    module = tmp_path / "slurm_test_net.py"
    module.write_text(NET)
    values = ("model=slurm_test_net:build", "run.steps=12", "launcher.extra={comment: a test, begin: now+5}")
    made = config(tmp_runs / "job", *values, "launcher.setup=['export FROM_SETUP=${HOME}']")
    run = submit(made)
    assert run.job is not None
    # Edited while the job waits: it runs the copy.
    module.write_text("raise ImportError('edited after the submission')\n")
    script = (run.directory / "launcher" / "slurm" / f"{run.job}_submission.sh").read_text()
    places = {str(run.directory): "RUN", sys.executable: "PYTHON", str(tmp_path): "FOLDER"}
    for path, word in places.items():
        script = script.replace(path, word)
    golden(Path(__file__).parent / "golden" / "submission.sh", re.sub(r"(PYTHONPATH=\S*?code):\S*", r"\1:...", script))
    with pytest.raises(ConfigError, match=r"already as job \d+; wait for it, or end it: geta cancel"):
        submit(made)
    result = wait(RunDirectory(run.directory))
    assert result.environment["slurm"]["job"] == run.job
    assert submit(made).job is None, "a finished run is not submitted again"

    module.write_text(NET)
    run_here(run.directory / "resolved.yaml", tmp_path / "local")
    assert differences(outcome(tmp_path / "local"), outcome(run.directory)) == []


def test_a_failure_comes_back_in_one_line(tmp_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slurm_test_broken.py").write_text(BROKEN)
    made = config(tmp_runs / "broken", "model=slurm_test_broken:build")
    run = submit(made)
    with pytest.raises(GetaError) as caught:
        wait(RunDirectory(run.directory))
    message = str(caught.value)
    assert f"RuntimeError: boom in job {run.job} (slurm_test_broken.py:13, in forward)" in message
    assert "\n" not in message and "geta logs" in message
    assert "Traceback (most recent call last)" in log(run)
    assert "FAILED" in slurm("sacct", "-n", "-X", "-j", str(run.job), "-o", "State")
    assert status([str(tmp_runs)]) == 0
    shown = capsys.readouterr().out
    assert "failed" in shown and str(run.job) in shown
    assert logs([str(run.directory)]) == 0
    assert f"boom in job {run.job}" in capsys.readouterr().out
    (tmp_path / "slurm_test_broken.py").write_text(NET)
    again = submit(made)  # what has ended is submitted again
    assert again.job not in (None, run.job)
    assert wait(RunDirectory(run.directory)).environment["slurm"]["job"] == again.job


def test_cancelled_while_it_waits_and_while_it_runs(tmp_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = submit(config(tmp_runs / "waiting", "launcher.extra={begin: now+1hour}"))
    running = submit(config(tmp_runs / "running", "run.steps=4000"))
    elsewhere = submit(config(tmp_runs / "elsewhere", "run.steps=4000"))
    until(lambda: standing(waiting).state == "waiting", "the job waits")
    until_saved(running)
    assert standing(running).state == "running"
    until_saved(elsewhere)
    slurm("scancel", str(elsewhere.job))
    assert cancel([str(tmp_runs)]) == 0
    for run in (waiting, running, elsewhere):
        until(lambda run=run: not standing(run).alive, "the job is over")  # type: ignore[misc]
        assert standing(run).state == "cancelled"
        with pytest.raises(StoppedError, match="was cancelled; the same command goes on"):
            wait(RunDirectory(run.directory))
    assert starts(waiting) == 0
    for run in (running, elsewhere):
        assert starts(run) == 1, "a cancelled job does not come back"
        assert "stopped after step" in log(run), "it was given the time to save"
    capsys.readouterr()
    assert cancel([str(tmp_runs)]) == 2
    assert "none of these runs has a job that waits or runs" in capsys.readouterr().err


@pytest.mark.long
def test_an_array_of_eight(tmp_runs: Path) -> None:
    values = ("method=dense", "run.steps=4", "launcher.array_parallelism=4")
    runs = submit_many([config(tmp_runs / f"s{seed}", *values, f"run.seed={seed}") for seed in range(8)])
    first = str(runs[0].job).partition("_")[0]
    assert [run.job for run in runs] == [f"{first}_{number}" for number in range(8)]
    script = runs[0].directory.parent.glob(f".arrays/*/slurm/{first}_submission.sh")
    assert "#SBATCH --array=0-7%4\n" in next(script).read_text()
    for seed, run in enumerate(runs):
        result = wait(RunDirectory(run.directory))
        assert (result.seed, result.environment["slurm"]["job"]) == (seed, run.job)


def test_what_slurm_refuses_leaves_nothing_behind(tmp_runs: Path) -> None:
    with pytest.raises(GetaError, match=r"Slurm refused the job: .*invalid partition specified: nowhere"):
        submit(config(tmp_runs / "refused", "launcher.partition=nowhere"))
    assert not (tmp_runs / "refused").exists()
