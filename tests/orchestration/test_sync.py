"""`geta sync`: every copy up to date and closed, whatever happened to the runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.cli_sync import main
from orchestration.owner import LOCK, SILENCE, alive, owned
from orchestration.tracking.cells import parent_of, summary, write_cells
from orchestration.tracking.follow import Patience, follow
from orchestration.tracking.intent import SENDER
from orchestration.tracking.store import file_lock, open_store
from orchestration.tracking.sync import BUSY, explain, reconcile, run_folders, synchronize
from tests.orchestration.tracked import copies, history, start_tracking, write_result, write_run, written


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{database}", "geta")
    return database


@pytest.fixture
def runs(empty_store: Path, tmp_path: Path) -> Path:
    """A folder of runs with an empty store."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def uri(runs: Path) -> str:
    return f"sqlite:///{runs / 'mlflow.db'}"


def statuses(runs: Path) -> dict[str, str]:
    return {run.info.run_name: run.info.status for run in copies(uri(runs))}


def test_every_end_gets_its_status_and_a_second_time_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "died", None)
    write_run(runs / "failed", None, status="FAILED")
    write_run(runs / "stopped", None, status="KILLED")
    write_run(runs / "deeper" / "done", uri(runs), status="FINISHED")
    write_result(runs / "deeper" / "done", 0, 0.5)
    write_run(runs / "going", None)
    with owned(runs / "going"):
        assert main([str(runs)]) == 0
    wanted = {"died": "KILLED", "failed": "FAILED", "stopped": "KILLED", "done": "FINISHED"}
    assert statuses(runs) == wanted
    out = capsys.readouterr().out
    assert "going is running" in out and "died was brought up to date: 5 lines" in out
    before = {run.info.run_name: history(uri(runs), run, "loss") for run in copies(uri(runs))}
    assert main([str(runs)]) == 0
    out = capsys.readouterr().out
    assert out.count("is up to date") == 4 and "going was brought up to date" in out
    after = {run.info.run_name: history(uri(runs), run, "loss") for run in copies(uri(runs))}
    assert {name: after[name] for name in before} == before and len(after) == 5
    assert after["died"] == written(runs / "died", "loss")


def test_the_store_moves_with_the_runs(runs: Path) -> None:
    write_run(runs / "a", None)
    assert main([str(runs)]) == 0
    moved = runs.with_name("moved")
    runs.rename(moved)
    write_result(moved / "a", 0, 0.5)
    assert main([str(moved / "a")]) == 0
    assert statuses(moved) == {"a": "FINISHED"} and not runs.exists()


def test_bad_calls(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), str(tmp_path / "absent")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("holds no run that is copied to MLflow" in line for line in lines)


def test_a_store_that_is_away_is_named_once(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("a", "b"):
        write_run(runs / name, "http://127.0.0.1:9")
    write_run(runs / "c", None)
    assert main([str(runs)]) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("geta: ")]
    assert "http://127.0.0.1:9 does not take a" in line
    assert statuses(runs) == {"c": "KILLED"}, "the other store gets its runs"


def test_a_killed_run_is_closed_by_the_next_start_in_its_folder(runs: Path) -> None:
    """Run and sender are killed together, as by a power cut; the next run in the folder finds that out."""
    process = start_tracking(runs / "first", uri(runs), 50, 600.0)
    until = time.monotonic() + 120
    while statuses(runs).get("first") != "RUNNING" and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.2)
    import psutil

    (child,) = psutil.Process(process.pid).children()
    assert alive(runs / "first")
    child.kill()
    process.kill()
    process.wait()
    assert not alive(runs / "first") and statuses(runs) == {"first": "RUNNING"}
    second = start_tracking(runs / "second", uri(runs), 3, 1.0)
    assert second.wait(200) == 0, (runs / "second.log").read_text()
    assert statuses(runs) == {"first": "KILLED", "second": "FINISHED"}
    assert (runs / "second.log").read_text() == ""
    (first,) = [run for run in copies(uri(runs)) if run.info.run_name == "first"]
    assert history(uri(runs), first, "loss") == written(runs / "first", "loss")


def test_a_sender_that_loses_its_run_closes_the_copy(runs: Path) -> None:
    process = start_tracking(runs / "run", uri(runs), 50, 600.0)
    until = time.monotonic() + 120
    while statuses(runs).get("run") != "RUNNING" and time.monotonic() < until:
        time.sleep(0.2)
    process.kill()
    process.wait()
    while statuses(runs).get("run") == "RUNNING" and time.monotonic() < until:
        time.sleep(0.2)
    with file_lock(runs / "run" / SENDER):  # the sender has ended
        assert statuses(runs) == {"run": "KILLED"}
    (run,) = copies(uri(runs))
    assert history(uri(runs), run, "loss") == written(runs / "run", "loss")


def test_reconcile_leaves_the_living_and_the_settled_alone(runs: Path) -> None:
    for name in ("me", "dead", "living", "busy", "settled"):
        write_run(runs / name, None)
    synchronize(runs / "settled")
    with owned(runs / "living"), file_lock(runs / "busy" / SENDER):
        assert synchronize(runs / "busy", wait=False) == BUSY
        assert reconcile(runs, besides=runs / "me") == [runs / "dead"]
    assert run_folders(runs / "absent") == []


def test_the_owner_of_a_run(tmp_path: Path) -> None:
    assert not alive(tmp_path)
    code = "import sys, time; from pathlib import Path; from orchestration.owner import owned\n"
    code += "with owned(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as out:
        out.readline()
    assert alive(tmp_path)
    process.kill()
    process.wait()
    assert not alive(tmp_path), "the lock file still names it"
    # Another machine: the lock tells where the file system does, else a sign of life within the last minutes.
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": f"not-{socket.gethostname()}", "pid": 1, "time": 0}))
    assert alive(tmp_path)
    os.utime(lock, (time.time() - SILENCE - 1,) * 2)
    assert not alive(tmp_path)
    with owned(tmp_path):
        lock.write_text(json.dumps({"host": f"not-{socket.gethostname()}", "pid": 1, "time": 0}))
        os.utime(lock, (0, 0))
        assert alive(tmp_path), "held"
    lock.write_text("no json")
    assert not alive(tmp_path)


def test_patience_with_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def locked() -> None:
        calls.append(1)
        raise RuntimeError("(sqlite3.OperationalError) database is locked")

    patience = Patience("sqlite:///x")
    assert not patience.attempt(locked) and not patience.attempt(locked)
    assert len(calls) == 1, "left alone for a while"
    assert not patience.attempt(locked, now=True) and patience.attempt(lambda: None, now=True)
    assert capsys.readouterr().err == "", "a busy file is nobody's concern"
    other = Patience("http://x")
    for _ in range(3):
        assert not other.attempt(lambda: 1 / 0, now=True)
    assert other.attempt(lambda: None, now=True)
    first, second = capsys.readouterr().err.splitlines()
    assert "http://x does not answer (ZeroDivisionError" in first and "answers again" in second


def test_errors_do_not_repeat_passwords() -> None:
    error = RuntimeError("cannot connect to\npostgresql://geta:secret@127.0.0.1/mlflow")
    assert explain(error) == "RuntimeError: cannot connect to postgresql://127.0.0.1/mlflow"


def test_a_follower_without_an_intent_has_nothing_to_do(tmp_path: Path) -> None:
    assert follow(tmp_path, lambda seconds: True, os.getpid()) == 0


def test_cells_hold_mean_deviation_and_interval(runs: Path) -> None:
    accuracies = [0.90, 0.94, 0.95]
    for seed, accuracy in enumerate(accuracies):
        folder = write_run(runs / f"s{seed}", None, cell="geta-small")
        write_result(folder, seed, accuracy)
    write_run(runs / "unfinished", None, cell="geta-small")
    assert main([str(runs)]) == 0
    found = {run.info.run_name: run for run in copies(uri(runs))}
    parent = found.pop("geta-small")
    assert parent.info.status == "FINISHED" and parent.data.tags["geta.method"] == "geta"
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id} and len(found) == 4
    # By hand: sd of the three, and t(0.975, 2) = 4.30265.
    deviation = (sum((value - 0.93) ** 2 for value in accuracies) / 2) ** 0.5
    metrics = parent.data.metrics
    assert metrics["final/test/accuracy"] == pytest.approx(0.93)
    assert metrics["final/test/accuracy_sd"] == pytest.approx(deviation)
    assert metrics["final/test/accuracy_ci95"] == pytest.approx(4.302653 * deviation / 3**0.5, rel=1e-6)
    assert metrics["final/group_sparsity_sd"] == 0
    assert parent.data.tags["geta.seeds"] == "[0, 1, 2]"
    assert write_cells(run_folders(runs)) == 1
    (again,) = [run for run in copies(uri(runs)) if run.info.run_name == "geta-small"]
    assert len(history(uri(runs), again, "final/test/accuracy")) == 1, "written again, it is the same point"
    assert summary([1.0]) == {"": 1.0} and summary([1.0, float("nan")]).keys() == {""}


def test_a_cell_that_two_processes_made_is_one(runs: Path) -> None:
    client, experiment = open_store(uri(runs), "geta")
    first = parent_of(client, experiment, "cell", {})
    # As if another process had not seen it yet.
    rival = client.create_run(experiment, tags=client.get_run(first).data.tags, run_name="cell").info.run_id
    assert parent_of(client, experiment, "cell", {}) == first != rival
