"""Some of ``python -m tests.kills``; a worker and the servers are killed in tests/orchestration."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.kills.trials import DISK, PROCESSES, RAY, Reference, Trial, end_of_process, full_disk, tried, undisturbed

pytestmark = [pytest.mark.needs("proc"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return undisturbed(tmp_path_factory.mktemp("local"), None)


@pytest.mark.long
@pytest.mark.needs("small_disk")
def test_a_full_disk(local: Reference, tmp_path: Path) -> None:
    trial = tried(tmp_path, Trial(DISK, 0), partial(full_disk, reference=local))
    assert not trial.faults, trial.faults
    assert trial.step < 120 and trial.needed == "room, and the same command"


@pytest.mark.long
def test_every_process_under_ray(tmp_path: Path) -> None:
    ray = undisturbed(tmp_path, dict(RAY))
    for kind in PROCESSES:
        trial = tried(tmp_path, Trial(kind, 0), partial(end_of_process, reference=ray))
        assert not trial.faults, (kind, trial.faults)
