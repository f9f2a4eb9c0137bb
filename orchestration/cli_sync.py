"""``geta sync``: bring the copies of runs in MLflow up to date."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ConfigError
from orchestration.console import Parser, complain, guarded, write

DEFAULT_ROOT = "runs"
INCOMPLETE = 1
"""Exit code when a store did not take everything."""
DESCRIPTION = """\
Bring the copies of runs in MLflow up to date from the runs' own files. What is there already is not sent again.
A run whose process is gone is set to FAILED or KILLED; one that is running sends for itself.
"""


def main(arguments: Sequence[str]) -> int:
    """Synchronize runs from the command line."""
    parser = Parser("geta sync", description=DESCRIPTION)
    parser.add_argument(
        "runs", nargs="*", default=[DEFAULT_ROOT], help="run directories, or folders of them (default: runs)"
    )
    given = parser.parse_args(arguments)
    return guarded(lambda: synchronize_all([Path(each) for each in given.runs]))


def synchronize_all(places: Sequence[Path]) -> int:
    """Bring every run in these folders up to date, and the cells they belong to.

    Raises:
        ConfigError: when a folder does not exist or holds no run with a copy in MLflow.
    """
    from orchestration.tracking.cells import write_cells
    from orchestration.tracking.intent import Intent
    from orchestration.tracking.sync import explain, run_folders, synchronize

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    found = {place: run_folders(place.absolute()) for place in places}
    faults = [f"{place} holds no run that is copied to MLflow" for place, folders in found.items() if not folders]
    if faults:
        raise ConfigError(faults)
    folders = list(dict.fromkeys(folder for each in found.values() for folder in each))
    silent: set[str] = set()
    for folder in folders:
        intent = Intent.read(folder)
        store = intent.store(folder) if intent is not None else ""
        if store in silent:
            continue
        try:
            write(f"{folder.name} {synchronize(folder)}")
        except Exception as error:  # noqa: BLE001 - the other runs may have another store
            silent.add(store)
            complain(f"the MLflow store {store} does not take {folder.name}: {explain(error)}")
    try:
        write_cells(folders if not silent else [])
    except Exception as error:  # noqa: BLE001 - as above
        silent.add("")
        complain(f"the cells could not be written: {explain(error)}")
    return INCOMPLETE if silent else 0
