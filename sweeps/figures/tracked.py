"""Hands pictures of many runs to the MLflow stores of those runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.console import complain
from orchestration.tracking.intent import Intent
from orchestration.tracking.store import open_store
from orchestration.tracking.sync import explain

LEVEL, NAME = "geta.level", "figures"


def log_figures(folders: Sequence[Path], files: Sequence[Path]) -> int:
    """Log the files to one run named "figures" in each experiment that the runs belong to.

    Drawn again, they replace the old ones. A store that is away ends nothing: the pictures lie in their folder.

    Returns:
        The number of experiments; runs without a copy in MLflow have none.
    """
    intents = {
        (intent.store(folder), intent.experiment): None
        for folder in folders
        if (intent := Intent.read(folder)) is not None
    }
    done = 0
    for store, experiment in intents:
        try:
            client, number = open_store(store, experiment)
            run = _run_of(client, number)
            for file in files:
                client.log_artifact(run, str(file))
            done += 1
        except Exception as error:  # noqa: BLE001 - no failure of a tracker may end a study
            complain(f"the pictures were not copied to MLflow ({explain(error)})")
    return done


def _run_of(client: Any, experiment: str) -> str:
    found = client.search_runs([experiment], f"tags.`{LEVEL}` = '{NAME}'")
    if found:
        return str(found[0].info.run_id)
    made = client.create_run(experiment, tags={LEVEL: NAME}, run_name=NAME)
    client.set_terminated(made.info.run_id, "FINISHED")
    return str(made.info.run_id)
