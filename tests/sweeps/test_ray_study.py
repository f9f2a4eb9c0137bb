"""A study whose runs are tasks of a Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.studies.study import Study
from tests.sweeps.killing import SHORT
from tests.sweeps.launchers import differences


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_study_gives_the_trials_and_values_of_a_local_one(tmp_path: Path) -> None:
    found = {}
    for launcher in ("local", "ray"):
        study = Study(
            launcher,
            [*SHORT, f"launcher={launcher}"],
            methods=["dense"],
            trials=3,
            parallel=2,
            synchronous=True,
            output=str(tmp_path / launcher),
        )
        found[launcher] = study.run(quiet=True)
    assert len(found["ray"]) == 3
    assert differences(found) == []
