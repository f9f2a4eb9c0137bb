"""Whatever ends a job before its time, the run ends with the bits of one that nothing has interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geta_core.errors import GetaError
from orchestration.launchers.slurm import Submission, submit, wait
from orchestration.rundir import RunDirectory
from orchestration.values import write_yaml
from tests.orchestration.small import differences, outcome
from tests.slurm.jobs import (
    Gate,
    cluster,
    config,
    log,
    nodes_of,
    run_here,
    slurm,
    starts,
    until,
    until_saved,
)

pytestmark = [pytest.mark.needs("slurm"), pytest.mark.timeout(900)]

WARNED = "Slurm warned of the time limit or of a preemption"
ASKED = "Slurm asked the job to end"
UNANNOUNCED = "Slurm ended the job and started it again"
SLEEPY = """\
import time

def build():
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run gives that nothing interrupts, on this machine."""
    folder = tmp_path_factory.mktemp("whole")
    resolved = folder / "resolved.yaml"
    resolved.write_text(write_yaml(config(folder / "run", *Gate(folder / "none").values()).to_dict()))
    run_here(resolved, folder / "run")
    return outcome(folder / "run")


def reasons(run: Submission) -> list[str]:
    """Return why the starts of a job have ended, as it counts them."""
    told = json.loads((run.directory / "launcher" / "attempts.json").read_text())
    return [each["reason"] for each in told["attempts"]]


def interrupted(gate: Gate, output: Path, do: Callable[[Submission], object], *more: str) -> Submission:
    """Submit a run, do something to it when it has a checkpoint, let it end."""
    run = submit(config(output, *gate.values(*more)))
    until_saved(run)
    do(run)
    gate.open()
    wait(RunDirectory(run.directory))
    return run


def preempt(run: Submission) -> None:
    """Let a job of higher priority ask for all CPUs of both nodes."""
    made = slurm("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    until(lambda: bool(slurm("sacct", "-nX", "-j", made.strip(), "-s", "CD", "-o", "JobID").strip()), "it has ended")
    assert starts(run) == 1


@pytest.mark.alone
def test_preempted_by_a_job_of_higher_priority(tmp_runs: Path, gate: Gate, whole: dict[str, Any]) -> None:
    run = interrupted(gate, tmp_runs / "run", preempt)
    assert differences(whole, outcome(run.directory)) == []
    assert (starts(run), reasons(run)) == (2, [WARNED])


def test_requeued_without_a_word(tmp_runs: Path, gate: Gate, whole: dict[str, Any]) -> None:
    run = interrupted(gate, tmp_runs / "run", lambda run: slurm("scontrol", "requeue", str(run.job)))
    assert differences(whole, outcome(run.directory)) == []
    assert (starts(run), reasons(run)) == (2, [UNANNOUNCED])


@pytest.mark.long
@pytest.mark.parametrize(("name", "reason"), [("USR2", WARNED), ("TERM", ASKED)])
def test_signalled(tmp_runs: Path, gate: Gate, whole: dict[str, Any], name: str, reason: str) -> None:
    run = interrupted(gate, tmp_runs / "run", lambda run: slurm("scancel", f"--signal={name}", str(run.job)))
    assert differences(whole, outcome(run.directory)) == []
    assert (starts(run), reasons(run)) == (2, [reason])


@pytest.mark.long
def test_the_time_limit(tmp_runs: Path, gate: Gate, whole: dict[str, Any]) -> None:
    """Slurm may warn up to a minute early, so the limit of two minutes ends the start after 30 to 90 seconds."""
    limits = ("launcher.timeout_min=2", "launcher.signal_s=30")
    run = interrupted(gate, tmp_runs / "run", lambda run: until(lambda: starts(run) == 2, "a second start"), *limits)
    assert differences(whole, outcome(run.directory)) == []
    assert (starts(run), reasons(run)) == (2, [WARNED])


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.usefixtures("fragile")
def test_the_node_dies(tmp_runs: Path, gate: Gate, whole: dict[str, Any]) -> None:
    def kill(run: Submission) -> None:
        (node,) = nodes_of(run)
        cluster("kill", node.removeprefix("node"))
        until(lambda: starts(run) == 2, "a start on the other node")
        assert nodes_of(run) != [node]

    run = interrupted(gate, tmp_runs / "run", kill)
    assert differences(whole, outcome(run.directory)) == []
    assert reasons(run) == [UNANNOUNCED]


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.usefixtures("fragile")
def test_the_link_is_cut_for_twenty_seconds(tmp_runs: Path, gate: Gate, whole: dict[str, Any]) -> None:
    def cut(run: Submission) -> None:
        (node,) = nodes_of(run)
        cluster("cut", node.removeprefix("node"))
        time.sleep(20)
        cluster("mend", node.removeprefix("node"))

    run = interrupted(gate, tmp_runs / "run", cut)
    assert differences(whole, outcome(run.directory)) == []
    assert (starts(run), reasons(run)) == (1, [])


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.usefixtures("fragile")
def test_the_link_is_cut_for_good(tmp_runs: Path, gate: Gate, whole: dict[str, Any]) -> None:
    """The job starts again on the other node while the processes of its first start still run: they must leave."""

    def cut(run: Submission) -> None:
        (node,) = nodes_of(run)
        cluster("cut", node.removeprefix("node"))
        until(lambda: starts(run) == 2, "a start on the other node")
        until(lambda: "has started again elsewhere" in log(run), "the first start leaves")

    run = interrupted(gate, tmp_runs / "run", cut)
    assert differences(whole, outcome(run.directory)) == []
    assert reasons(run) == [UNANNOUNCED]


@pytest.mark.long
def test_a_run_that_gets_nowhere_is_not_requeued_for_ever(tmp_runs: Path, tmp_path: Path) -> None:
    (tmp_path / "slurm_test_sleepy.py").write_text(SLEEPY)
    run = submit(config(tmp_runs / "sleepy", "model=slurm_test_sleepy:build"))
    for number in (1, 2):
        until(lambda number=number: starts(run) == number, f"start {number}")  # type: ignore[misc]
        slurm("scontrol", "requeue", str(run.job))
    with pytest.raises(GetaError, match=r"no progress in 2 attempts: each ended at step 0.* Slurm ended the job"):
        wait(RunDirectory(run.directory))
    assert starts(run) == 3


@pytest.mark.long
def test_requeues_are_limited(tmp_runs: Path, gate: Gate) -> None:
    run = submit(config(tmp_runs / "run", *gate.values("launcher.max_requeues=1")))
    for number in (1, 2):
        until(lambda number=number: starts(run) == number, f"start {number}")  # type: ignore[misc]
        until(lambda number=number: log(run).count("step ") > number, "it trains")  # type: ignore[misc]
        until_saved(run)
        slurm("scancel", "--signal=USR2", str(run.job))
    with pytest.raises(GetaError, match=r"started again 1 times, as often as allowed, and ended at step \d+"):
        wait(RunDirectory(run.directory))
    assert starts(run) == 2
