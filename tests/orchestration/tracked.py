"""Runs that only track: everything that the tracking sees of a run, without a training.

``python -m tests.orchestration.tracked FOLDER URI LINES SECONDS`` writes so many lines over so many seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestration.files import write_json
from orchestration.owner import owned
from orchestration.result import RunResult
from orchestration.services.processes import SERVER, mlflow_command, wait_for
from orchestration.tracking.base import Line, TrackerSettings
from orchestration.tracking.intent import INTENT, Intent
from orchestration.tracking.jsonl import Journal
from orchestration.tracking.mlflow import MlflowTracker
from tests.ports import own_port

TAGS = {"geta.method": "geta", "geta.model": "digits_cnn", "geta.task": "digits", "geta.digest": "0" * 12}


def write_run(folder: Path, uri: str | None, count: int = 5, **changes: Any) -> Path:
    """Write a run directory as a process leaves it that died without a word after ``count`` lines."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: changes.pop(key) for key in ("cell", "experiment") if key in changes}
    intent = Intent.of(TrackerSettings(uri=uri, **settings), folder.name, Intent.read(folder))
    values = {"parameters": {"run.seed": 3}, "tags": TAGS, **changes}
    write_json(folder / INTENT, {**vars(intent), **values})
    journal = Journal(folder)
    journal.open_at(journal.offset())
    for step in range(1, count + 1):
        journal.append("epoch", (step, step), "joint", {"loss": 1 / step}, {"seconds": step / 10})
    return folder


def write_result(folder: Path, seed: int, accuracy: float) -> RunResult:
    """Write a result such as a complete run leaves."""
    numbers = dict.fromkeys(("steps", "epochs", "parameters", "bytes"), 1)
    result = RunResult(
        directory=str(folder), digest="0" * 12, task="digits", model="digits_cnn", method="geta", seed=seed,
        device="cpu", precision="float32", metrics={"test/accuracy": accuracy}, group_sparsity=0.5, weight_bits=4.5,
        activation_bits=8.0, relative_bops=0.01, relative_sparse_bops=0.01, macs=1.0, dense={}, latency_ms=1.0,
        native=True, max_error64=0.0, layers=[], seconds={}, environment={}, **numbers,
    )  # fmt: skip
    result.save(folder / "result.json")
    return result


def copies(uri: str, experiment: str = "geta") -> list[Any]:
    """Return every run of an experiment in a store."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found is not None else []


def history(uri: str, run: Any, key: str) -> list[tuple[int, int, float]]:
    """Return step, time and value of every point that a store has, in order."""
    from mlflow.tracking import MlflowClient

    found = MlflowClient(uri).get_metric_history(run.info.run_id, key)
    return sorted((each.step, each.timestamp, each.value) for each in found)


def written(folder: Path, key: str) -> list[tuple[int, int, float]]:
    """Return the same points as the journal has them."""
    found: Sequence[Line] = Journal(folder).lines()
    values: list[tuple[Line, Mapping[str, float]]] = [(line, {**line.metrics, **line.seconds}) for line in found]
    return sorted((line.step, line.time, numbers[key]) for line, numbers in values if key in numbers)


def start_tracking(folder: Path, uri: str, lines: int, seconds: float) -> subprocess.Popen[bytes]:
    """Start a process that only tracks; its messages go to a file beside the folder."""
    command = [sys.executable, "-m", "tests.orchestration.tracked", str(folder), uri, str(lines), str(seconds)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


class Server:
    """MLflow's real server over a SQLite file, which can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, own_port(5700)
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        store = f"sqlite:///{self._folder / 'server.db'}"
        command = mlflow_command(store, self._port, 1, self._folder / "served")
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **SERVER}, start_new_session=True
            )
        wait_for(self.uri, self._process.poll)

    def kill(self) -> None:
        """End it and its children at once, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Run a server for the block."""
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def main(arguments: Sequence[str]) -> None:
    folder, uri, count, seconds = Path(arguments[0]), arguments[1], int(arguments[2]), float(arguments[3])
    with owned(folder):
        journal = Journal(folder)
        journal.open_at(0)
        tracker = MlflowTracker(TrackerSettings(uri=uri), folder.name, folder)
        tracker.start({"run.output": str(folder)}, {**TAGS, "geta.directory": str(folder)})
        for step in range(1, count + 1):
            metrics = {"loss": 1 / step, "val/accuracy": step / count}
            tracker.send([journal.append("epoch", (step, step), "joint", metrics)])
            time.sleep(seconds / count)
        write_result(folder, 0, 0.5)
        tracker.finish("FINISHED")


if __name__ == "__main__":
    main(sys.argv[1:])
