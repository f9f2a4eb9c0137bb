"""Numbers on disk and in MLflow: written once, sent twice without harm, never in the way."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestration.tracking import unfinished_trackers
from orchestration.tracking.base import Line, TrackerSettings
from orchestration.tracking.jsonl import Journal
from orchestration.tracking.mlflow import MlflowTracker, open_store, read_state, sqlite_path


def lines(count: int, start: int = 1) -> list[Line]:
    return [Line("epoch", step, step, "joint", 1000 + step, {"loss": 1 / step}) for step in range(start, start + count)]


def test_a_journal_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open_at(0)
    journal.append("epoch", (10, 1), "warmup", {"loss": 2.0}, {"seconds": 1.0})
    offset = journal.offset()
    lost = journal.append("epoch", (20, 2), "joint", {"loss": 1.0}, {"seconds": 2.0})
    changed = journal.append("stage", (20, 2), "joint", {"loss": 0.9})
    with journal.path.open("a") as file:
        file.write('{"kind": "epoch", "st')  # killed in the middle of a line
    again = Journal(tmp_path)
    again.open_at(offset)
    assert [line.step for line in again.lines()] == [10]
    time.sleep(0.003)
    same = again.append("epoch", (20, 2), "joint", {"loss": 1.0}, {"seconds": 99.0})
    assert same == lost, "equal numbers keep the time they may have been sent with"
    other = again.append("stage", (20, 2), "joint", {"loss": 0.8})
    assert other.time > changed.time and other.metrics == {"loss": 0.8}
    # Killed again before the next checkpoint: the first times are still known.
    third = Journal(tmp_path)
    third.open_at(offset)
    assert third.append("epoch", (20, 2), "joint", {"loss": 1.0}) == lost
    third.close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}
    written = [json.loads(line) for line in third.path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in written] == [("epoch", 10), ("epoch", 20)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    open_store(uri, "geta")
    return uri


def history(uri: str, directory: Path, key: str) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run_id = read_state(directory / "mlflow.json")["run_id"]
    return client.get_run(run_id), client.get_metric_history(run_id, key)


def test_a_resumed_run_is_one_run_without_doubles(tmp_path: Path, store: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"p")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_text("{}")
    for status in ("KILLED", "FINISHED"):
        tracker = MlflowTracker(TrackerSettings(), store, "name", tmp_path)
        tracker.start({"run.seed": 3, **{f"key{number}": number for number in range(150)}}, {"geta.method": "geta"})
        tracker.send(lines(30))
        tracker.files([tmp_path / "picture.png", tmp_path / "artifact"])
        tracker.finish(status)
        info, found = history(store, tmp_path, "loss")
        assert info.info.status == status
        assert [(each.step, each.timestamp, each.value) for each in sorted(found, key=lambda each: each.step)] == [
            (line.step, line.time, line.metrics["loss"]) for line in lines(30)
        ]
    assert info.data.params["run.seed"] == "3" and len(info.data.params) == 151
    assert info.data.tags["geta.method"] == "geta" and info.info.run_name == "name"
    from mlflow.tracking import MlflowClient

    names = {each.path for each in MlflowClient(store).list_artifacts(info.info.run_id)}
    assert names == {"picture.png", "artifact"}


def test_a_run_that_was_made_but_not_noted_is_found(tmp_path: Path, store: str) -> None:
    tracker = MlflowTracker(TrackerSettings(), store, "name", tmp_path)
    tracker.start({}, {})
    state = read_state(tmp_path / "mlflow.json")
    # As if the process had been killed between the creation of the run and the note of its id.
    (tmp_path / "mlflow.json").write_text(json.dumps({"uri": state["uri"], "token": state["token"]}))
    again = MlflowTracker(TrackerSettings(), store, "name", tmp_path)
    again.start({}, {})
    again.finish("FINISHED")
    assert read_state(tmp_path / "mlflow.json")["run_id"] == state["run_id"]


def test_a_dead_server_costs_seconds_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = MlflowTracker(TrackerSettings(), "http://127.0.0.1:9", "name", tmp_path)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        tracker.start({}, {})
        for line in lines(200):
            tracker.send([line])
        tracker.files([tmp_path])
    assert time.monotonic() - started < 20
    told = [record.message for record in caplog.records if "does not answer" in record.message]
    assert len(told) == 1, "said once, not at each step"
    tracker.finish("FINISHED")


def test_a_store_that_comes_back_gets_everything(tmp_path: Path, store: str) -> None:
    tracker = MlflowTracker(TrackerSettings(), "http://127.0.0.1:9", "name", tmp_path)
    tracker.start({"a": 1}, {})
    tracker.send(lines(5))
    tracker._uri = store
    tracker.send(lines(5, 6))
    tracker.finish("FINISHED")
    _, found = history(store, tmp_path, "loss")
    assert sorted(each.step for each in found) == list(range(1, 11))


def test_processes_may_open_a_new_store_together(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    code = f"from orchestration.tracking.mlflow import open_store; print(open_store({uri!r}, 'geta')[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({out.split()[-1] for out, _ in outputs}) == 1


def test_sqlite_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:////a/b%20c.db") == Path("/a/b c.db")
    assert sqlite_path("sqlite:///c.db") == tmp_path / "c.db"
    assert sqlite_path("http://127.0.0.1:5000") is None


def test_a_finished_run_knows_whether_its_tracker_saw_the_end(tmp_path: Path, store: str) -> None:
    from orchestration.compose import compose

    config = compose([f"tracker.uri={store}"])
    assert unfinished_trackers(config, tmp_path) == []
    tracker = MlflowTracker(config.tracker, store, "name", tmp_path)
    tracker.start({}, {})
    assert len(unfinished_trackers(config, tmp_path)) == 1
    tracker.finish("FINISHED")
    assert unfinished_trackers(config, tmp_path) == []
