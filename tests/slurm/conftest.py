"""No job outlives its test, and tests that disturb the whole cluster have it for themselves."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.launchers import scheduler
from orchestration.launchers.slurm_job import RECORD
from tests.slurm.jobs import Gate, all_nodes_up, cluster, is_up, until


@pytest.fixture(autouse=True)
def share_of_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let tests that end nodes, or other jobs, have the cluster alone; the lock works across test processes."""
    with (Path(tempfile.gettempdir()) / f"geta-tests-slurm-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


@pytest.fixture(autouse=True)
def no_job_left(tmp_path: Path, share_of_the_cluster: None) -> Iterator[None]:
    """Cancel what a failed test has left in the queue."""
    yield
    numbers = [json.loads(path.read_text())["job"] for path in tmp_path.rglob(f"launcher/{RECORD}")]
    left = [job.number for job in scheduler.jobs(numbers).values() if job.waits or job.runs]
    if left:
        scheduler.cancel(left)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A closed gate."""
    made = Gate(tmp_path / "gate")
    made.close()
    yield made
    made.open()


@pytest.fixture
def fragile() -> Iterator[None]:
    """Both nodes are there again after the test, whatever it has done to them."""
    yield
    for number in ("1", "2"):
        cluster("mend", number)
        if not is_up(f"node{number}"):  # Slurm asks a node that was away only now and then; a new slurmd reports itself
            cluster("kill", number)
        cluster("start", number)
    until(all_nodes_up, "both nodes take jobs again", 120)
