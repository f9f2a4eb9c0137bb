"""Runs of several workers in one job: Ray on its nodes, the bits of two workers here, nothing open to strangers."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from geta_core.errors import GetaError
from orchestration.cli_jobs import cancel
from orchestration.config import LauncherSettings
from orchestration.launchers.slurm import Submission, submit, wait
from orchestration.launchers.slurm_network import BLOCK, BLOCKS, FIRST_PORT
from orchestration.rundir import RunDirectory
from tests.orchestration.distributed.workers import together
from tests.orchestration.small import differences, outcome
from tests.slurm import probe
from tests.slurm.jobs import (
    Gate,
    all_nodes_up,
    cluster,
    config,
    log,
    slurm,
    standing,
    starts,
    until,
    until_saved,
)
from tests.slurm.probe import of_job

pytestmark = [pytest.mark.needs("slurm"), pytest.mark.timeout(1200)]

TWO_NODES = ("launcher.workers=2", "launcher.nodes=2")
ONE_NODE = ("launcher.workers=2", "launcher.cpus_per_task=1")
METHODS = {
    "gcs_server": "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "node manager": "/ray.rpc.NodeManagerService/GetNodeStats",
    "object manager": "/ray.rpc.ObjectManagerService/Push",
    "worker": "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
}
"""A harmless method of each of Ray's services."""
AGENT = "/get_runtime_envs_info"
BROKEN = """\
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            raise RuntimeError("boom on a worker")
        return super().forward(x)

def build(num_classes: int = 10):
    return Net(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two workers on this machine give, without Slurm and Ray."""
    folder = tmp_path_factory.mktemp("pair")
    made = config(folder / "run", *Gate(folder / "none").values())
    together(folder, {"run": {"config": replace(made, launcher=LauncherSettings()).to_dict()}})
    return outcome(folder / "run")


def refuses(found: probe.Listener, token: str) -> None:
    """Fail unless one of Ray's services refuses callers without the token or with another, and serves the right one."""
    host = probe.ADDRESSES[found.node]
    if "RuntimeEnvAgent" in found.title:
        answers = [probe.http_status(host, found.port, AGENT, given) for given in (None, "0" * 64, token)]
        assert answers == [401, 403, 200], found
        return
    known = [
        answers
        for method in METHODS.values()
        if "12" not in (answers := [probe.grpc_status(host, found.port, method, given) for given in (None, token)])
    ]
    assert known == [[probe.UNAUTHENTICATED, "0"]], f"{found}: {known}"
    (method,) = [each for each in METHODS.values() if probe.grpc_status(host, found.port, each, token) != "12"]
    assert probe.grpc_status(host, found.port, method, "0" * 64) == probe.UNAUTHENTICATED, found


def test_two_nodes(tmp_runs: Path, gate: Gate, pair: dict[str, Any]) -> None:
    run = submit(config(tmp_runs / "run", *gate.values(*TWO_NODES)))
    job = str(run.job)
    until_saved(run)
    found = probe.listeners(job)
    tokens = {
        line.partition("=")[2]
        for pid in of_job(job)
        for line in probe.environment(pid).splitlines()
        if line.startswith("RAY_AUTH_TOKEN=")
    }
    assert len(tokens) == 1
    (token,) = tokens
    titles = [probe.title(pid) for pid in psutil.pids()]

    # torch's store and gloo listen on the one address that the nodes share, in the worker's process.
    own = [each for each in found if each.bound != "*" and "RayTrainWorker" in each.title]
    assert {each.bound for each in own} <= set(probe.ADDRESSES.values())
    services = [each for each in found if each not in own]
    first = FIRST_PORT + int(job) % BLOCKS * BLOCK
    assert all(first <= each.port < first + BLOCK for each in services), (job, services)
    assert {each.node for each in services} == set(probe.ADDRESSES)
    for name in ("gcs_server", "raylet", "RuntimeEnvAgent", "RayTrainWorker", "ray_driver"):
        assert any(name in each.title for each in services), (name, services)
    for each in services:
        refuses(each, token)
    gate.open()

    result = wait(RunDirectory(run.directory))
    assert result.environment["slurm"]["job"] == job and result.environment["workers"] == 2
    assert differences(pair, outcome(run.directory)) == []
    assert starts(run) == 1
    until(lambda: standing(run).state == "finished" and not slurm("squeue", "-h", "-j", job), "the job has ended")
    assert of_job(job) == []
    folders = {each for title in titles for each in re.findall(r"/tmp/geta-\w+", title) if f"{job}-0-" in title}
    assert len(folders) >= 3 and not [each for each in folders if Path(each).exists()], "two nodes' and the driver's"
    assert not [title for title in titles if token in title]
    holders = [path for path in run.directory.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert holders == []


@pytest.mark.long
def test_a_failure_of_one_of_two_workers_comes_back_with_its_traceback(tmp_runs: Path, tmp_path: Path) -> None:
    (tmp_path / "slurm_test_broken_pair.py").write_text(BROKEN)
    run = submit(config(tmp_runs / "broken", "model=slurm_test_broken_pair:build", *ONE_NODE))
    with pytest.raises(GetaError, match="boom on a worker"):
        wait(RunDirectory(run.directory))
    assert "Traceback (most recent call last)" in log(run)


def kill(run: Submission, title: str) -> None:
    """Kill one of a job's processes."""
    victims = [pid for pid in of_job(str(run.job)) if title in probe.title(pid)]
    os.kill(victims[-1], signal.SIGKILL)


def requeued(run: Submission) -> None:
    """Wait for the second start."""
    until(lambda: starts(run) == 2, "a second start")


def warned(run: Submission) -> None:
    slurm("scancel", "--signal=USR2", str(run.job))
    requeued(run)


def terminated(run: Submission) -> None:
    slurm("scancel", "--signal=TERM", str(run.job))
    requeued(run)


def preempted(run: Submission) -> None:
    slurm("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    requeued(run)


def a_worker_dies(run: Submission) -> None:
    kill(run, "RayTrainWorker")
    until(lambda: "goes on after step" in log(run), "another attempt in the same job")


def the_driver_dies(run: Submission) -> None:
    kill(run, "ray_driver")
    until(lambda: "goes on after step" in log(run), "another attempt in the same job")


def the_head_dies(run: Submission) -> None:
    kill(run, "gcs_server")
    requeued(run)


def a_raylet_dies(run: Submission) -> None:
    kill(run, "raylet/raylet")
    until(lambda: "goes on after step" in log(run), "the node joins again, in the same job")


def a_node_dies(run: Submission) -> None:
    cluster("kill", "2")
    until(lambda: standing(run).state == "waiting", "the job is in the queue again")
    cluster("start", "2")
    requeued(run)


def cut_for_twenty_seconds(run: Submission) -> None:
    cluster("cut", "2")
    time.sleep(20)
    cluster("mend", "2")
    assert starts(run) == 1


def cut_for_good(run: Submission) -> None:
    cluster("cut", "2")
    until(lambda: standing(run).state == "waiting", "the job is in the queue again")
    cluster("mend", "2")
    until(all_nodes_up, "the node is there again")
    requeued(run)


CASES = {
    "warned": warned,
    "terminated": terminated,
    "preempted": preempted,
    "worker": a_worker_dies,
    "driver": the_driver_dies,
    "head": the_head_dies,
    "raylet": a_raylet_dies,
    "node": a_node_dies,
    "cut-20-s": cut_for_twenty_seconds,
    "cut": cut_for_good,
}


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.usefixtures("fragile")
@pytest.mark.parametrize("do", CASES.values(), ids=CASES.keys())
def test_interrupted_on_two_nodes(
    tmp_runs: Path, gate: Gate, pair: dict[str, Any], do: Callable[[Submission], None]
) -> None:
    run = submit(config(tmp_runs / "run", *gate.values(*TWO_NODES)))
    until_saved(run)
    do(run)
    gate.open()
    wait(RunDirectory(run.directory))
    assert differences(pair, outcome(run.directory)) == []
    until(lambda: not slurm("squeue", "-h", "-j", str(run.job)), "the job has ended")
    assert of_job(str(run.job)) == []


@pytest.mark.long
def test_two_workers_on_one_node(tmp_runs: Path, gate: Gate, pair: dict[str, Any]) -> None:
    run = submit(config(tmp_runs / "run", *gate.values(*ONE_NODE)))
    until_saved(run)
    outside = [
        each for each in probe.listeners(str(run.job)) if not each.bound.startswith(("127.", "[::1]", "[::ffff:127."))
    ]
    assert outside == []
    warned(run)
    gate.open()
    wait(RunDirectory(run.directory))
    assert differences(pair, outcome(run.directory)) == []
    attempts = json.loads((run.directory / "launcher" / "attempts.json").read_text())["attempts"]
    assert len(attempts) == 1


@pytest.mark.long
def test_cancelled_on_two_nodes(tmp_runs: Path, gate: Gate, pair: dict[str, Any]) -> None:
    values = gate.values(*TWO_NODES)
    run = submit(config(tmp_runs / "run", *values))
    until_saved(run)
    assert cancel([str(tmp_runs)]) == 0
    until(lambda: not standing(run).alive, "the job is over")
    until(lambda: not slurm("squeue", "-h", "-j", str(run.job)), "the job has ended")
    assert standing(run).state == "cancelled" and starts(run) == 1
    assert "stopped after step" in log(run), "it was given the time to save"
    assert of_job(str(run.job)) == []
    gate.open()
    wait(RunDirectory(submit(config(tmp_runs / "run", *values)).directory))
    assert differences(pair, outcome(run.directory)) == []
