"""One finished short run that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.compose import compose
from orchestration.result import RunResult
from orchestration.run import run
from tests.orchestration.small import small


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A short GETA run that was never interrupted."""
    return run(compose(small(tmp_path_factory.mktemp("finished") / "run", "method.activation_bits=[4,8]")))


@pytest.fixture
def finished_directory(finished: RunResult) -> Path:
    return Path(finished.directory)
