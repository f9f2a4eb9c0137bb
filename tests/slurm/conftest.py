"""No job outlives its test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.launchers import scheduler
from orchestration.launchers.slurm_job import RECORD


@pytest.fixture(autouse=True)
def no_job_left(tmp_path: Path) -> Iterator[None]:
    """Cancel what a failed test has left in the queue."""
    yield
    numbers = [json.loads(path.read_text())["job"] for path in tmp_path.rglob(f"launcher/{RECORD}")]
    left = [job.number for job in scheduler.jobs(numbers).values() if job.waits or job.runs]
    if left:
        scheduler.cancel(left)
