"""Where the runs of a comparison stand in MLflow: study (experiment), cell (parent run), seed (child run)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestration.config import Config
from orchestration.console import complain


def layout(config: Config, values: Sequence[str], study: str | None) -> tuple[str, ...]:
    """Return the keys that put a run into its study and its cell.

    The cell is named after its method, model and task, and after what was asked for: the bit widths that a method is
    given may differ from seed to seed.

    Args:
        config: of one of the method's runs, before anything is matched.
        values: what the user said.
        study: MLflow experiment; None is "compare-TASK", or what ``tracker.experiment`` says.
    """
    asked = replace(config, run=replace(config.run, seed=0)).digest()[:8]
    cell = f"{config.method.name}-{config.model.name}-{config.task.name}-{asked}"
    keys = [f"tracker.cell={json.dumps(cell)}"]
    if study is not None or not any(value.startswith("tracker.experiment=") for value in values):
        keys.append(f"tracker.experiment={json.dumps(study or f'compare-{config.task.name}')}")
    return tuple(keys)


def write_statistics(folders: Sequence[Path]) -> None:
    """Write the statistics of the cells; a store that is away gets them with ``geta sync``."""
    from orchestration.tracking.cells import write_cells
    from orchestration.tracking.sync import explain

    try:
        write_cells(folders)
    except Exception as error:  # noqa: BLE001 - no failure of a tracker may end a comparison
        complain(f"the cells were not written to MLflow ({explain(error)}); `geta sync` does it later")
