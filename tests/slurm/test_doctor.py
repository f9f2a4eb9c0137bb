"""``geta doctor`` on a real cluster, and on machines where something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.cli_doctor import main
from tests.orchestration.small import everything_under


@pytest.mark.needs("slurm")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_cluster_in_order(tmp_runs: Path, capsys: pytest.CaptureFixture[str], quick: bool) -> None:
    """Without --quick the probe waits for Slurm's own warning before a time limit."""
    code = main(["--folder", str(tmp_runs), "launcher.mem_gb=1", *(["--quick"] if quick else [])])
    shown = capsys.readouterr().out
    assert code == 0, shown
    verdicts = {line[6:].partition(":")[0]: line[:4].strip() for line in shown.splitlines()[:-1]}
    checks = ("commands", "controller", "accounting", "partition", "submission", "shared folder", "rename, fsync")
    for what in (*checks, "locks", "address", "Python", "torch", "signals", "requeue"):
        assert verdicts[what] == "ok", (what, shown)
    assert "signal 12 arrived" in shown and ("limit 120 s" in shown) is not quick
    assert "the job started again after" in shown
    assert shown.endswith("nothing must be fixed\n")
    assert everything_under(tmp_runs) == set(), "the probe's files are gone"


@pytest.mark.needs("slurm")
def test_a_partition_that_does_not_exist(tmp_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--partition", "nowhere", "--quick", "--folder", str(tmp_runs)]) == 1
    shown = capsys.readouterr().out
    assert "FIX   partition: nowhere does not exist: set launcher.partition to one of " in shown
    assert "FIX   job: Slurm refused the job" in shown
    assert everything_under(tmp_runs) == set()


def test_a_machine_without_slurm(
    tmp_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_runs))
    assert main(["--folder", str(tmp_runs)]) == 1
    shown = capsys.readouterr().out
    assert "FIX   commands: sbatch, srun, squeue, sacct, scontrol, scancel not on PATH" in shown
    assert not tmp_runs.exists(), "nothing more is tried"


def test_wrong_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launcher.partitoin=a", "run.steps=3", "launcher.nodes=0"]) == 2
    said = capsys.readouterr().err
    assert "unknown key launcher.partitoin (did you mean 'launcher.partition'?)" in said
    assert "geta doctor takes launcher.key=value, but got run.steps" in said
    assert "launcher.nodes must be a whole number >= 1" in said
