"""Runs that differ in their seed alone, as children of one MLflow run: their cell.

The experiment is the study, the cell holds mean, standard deviation and confidence interval of its seeds' final
numbers under the same names with an ending.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.result import RunResult
from orchestration.tracking.intent import RESULT, Intent
from orchestration.tracking.store import open_store

CELL, LEVEL = "geta.cell", "geta.level"
SHARED = ("geta.method", "geta.model", "geta.task", "geta.commit", "geta.study")
"""Tags that a cell has in common with its seeds."""
CONFIDENCE = 0.95


def parent_of(client: Any, experiment: str, cell: str, tags: Mapping[str, str]) -> str:
    """Return the id of a cell's run; it is made if it is new.

    It is never RUNNING: no process stands behind it. Where two processes make it at the same time, both keep the one
    that comes first by time and id, and the other is removed.
    """
    found = _parents(client, experiment, cell)
    if not found:
        shared = {key: tags[key] for key in SHARED if key in tags}
        made = client.create_run(experiment, tags={**shared, CELL: cell, LEVEL: "cell"}, run_name=cell)
        client.set_terminated(made.info.run_id, "FINISHED")
        found = _parents(client, experiment, cell)
        if found[0] != made.info.run_id:
            client.delete_run(made.info.run_id)
    return found[0]


def _parents(client: Any, experiment: str, cell: str) -> list[str]:
    wanted = f"tags.`{CELL}` = '{cell}' and tags.`{LEVEL}` = 'cell'"
    runs = client.search_runs([experiment], wanted)
    return [run.info.run_id for run in sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))]


def write_cells(folders: Iterable[Path]) -> int:
    """Write the statistics of every cell over its complete runs among these run directories.

    Numbers and times follow from the results alone, so that writing them again changes nothing.

    Returns:
        The number of cells.
    """
    cells: dict[tuple[str, str, str], list[tuple[Intent, RunResult, int]]] = defaultdict(list)
    for folder in folders:
        intent = Intent.read(folder)
        if intent is None or intent.cell is None or not (folder / RESULT).is_file():
            continue
        ended = (folder / RESULT).stat().st_mtime_ns // 1_000_000
        key = (intent.store(folder), intent.experiment, intent.cell)
        cells[key].append((intent, RunResult.load(folder / RESULT), ended))
    for (store, name, cell), seeds in cells.items():
        client, experiment = open_store(store, name)
        run_id = parent_of(client, experiment, cell, seeds[0][0].tags)
        _write(client, run_id, [result for _, result, _ in seeds], max(ended for *_, ended in seeds))
    return len(cells)


def _write(client: Any, run_id: str, results: Sequence[RunResult], time: int) -> None:
    from mlflow.entities import Metric, RunTag

    numbers = [result.numbers() for result in results]
    metrics = [
        Metric(name + ending, value, time, 0)  # one value at step 0 is drawn as a bar
        for name in numbers[0]
        for ending, value in summary([each[name] for each in numbers if name in each]).items()
    ]
    seeds = json.dumps(sorted(result.seed for result in results))
    client.log_batch(run_id, metrics=metrics, tags=[RunTag("geta.seeds", seeds)])


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the mean ("") and, from two values on, "_sd" and "_ci95".

    The last is half the width of the 95 % confidence interval of the mean by Student's t.
    """
    found = {"": statistics.fmean(values)}
    if len(values) > 1 and all(map(math.isfinite, values)):
        from scipy.stats import t

        deviation = statistics.stdev(values)
        factor = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        found |= {"_sd": deviation, "_ci95": factor * deviation / math.sqrt(len(values))}
    return found
