"""A real MLflow server, killed and started again, and many runs at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestration.cli_sync import main
from orchestration.tracking.store import open_store
from tests.orchestration.tracked import Server, copies, history, served, start_tracking, written

RUNS, LINES = 8, 40


def check(uri: str, folders: list[Path]) -> None:
    """Check that a store holds every number of these runs once."""
    found = {run.info.run_name: run for run in copies(uri)}
    assert found.keys() == {folder.name for folder in folders}
    for folder in folders:
        run = found[folder.name]
        assert run.info.status == "FINISHED"
        for key in ("loss", "val/accuracy"):
            assert history(uri, run, key) == written(folder, key) and len(written(folder, key)) >= 20, folder.name


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_eight_runs_at_once(tmp_path: Path, kind: str) -> None:
    """All numbers arrive once, and nobody reads "database is locked"."""
    folders = [tmp_path / "runs" / f"run{number}" for number in range(RUNS)]

    def all_of_them(uri: str) -> None:
        processes = [start_tracking(folder, uri, LINES, 10.0) for folder in folders]
        codes = [process.wait(280) for process in processes]
        messages = "".join(folder.with_suffix(".log").read_text() for folder in folders)
        assert (codes, messages) == ([0] * RUNS, "")
        check(uri, folders)

    if kind == "server":
        with served(tmp_path) as server:
            all_of_them(server.uri)
        return
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    open_store(uri, "geta")  # as whoever dispatches runs does
    all_of_them(uri)


def test_down_at_the_start_then_up(tmp_path: Path) -> None:
    server = Server(tmp_path)
    folder = tmp_path / "runs" / "run"
    process = start_tracking(folder, server.uri, LINES, 25.0)
    try:
        wait_for_text(folder.with_suffix(".log"), "does not answer")
        server.start()
        assert process.wait(200) == 0
        check(server.uri, [folder])
        said = folder.with_suffix(".log").read_text().splitlines()
        assert len(said) == 2 and "answers again" in said[1]
    finally:
        process.kill()
        process.wait()
        server.kill()


def test_killed_in_the_middle_and_at_the_end(tmp_path: Path) -> None:
    """kill -9 of the server: the runs do not notice; what is missing is sent once, by the run or by `geta sync`."""
    folders = [tmp_path / "runs" / name for name in ("middle", "end")]
    with served(tmp_path) as server:
        processes = [
            start_tracking(folders[0], server.uri, LINES, 40.0),
            start_tracking(folders[1], server.uri, 30, 15.0),
        ]
        until = time.monotonic() + 120
        while len(copies(server.uri)) < 2 and time.monotonic() < until:
            time.sleep(0.3)
        server.kill()
        assert processes[1].wait(200) == 0, "the run that ends while the server is away"
        assert "`geta sync" in folders[1].with_suffix(".log").read_text()
        server.start()
        assert processes[0].wait(200) == 0, "the run that is still training"
        states = {run.info.run_name: run.info.status for run in copies(server.uri)}
        # The run that went on may have sent what the other one left; else `geta sync` does.
        assert states["middle"] == "FINISHED" and states["end"] in ("RUNNING", "FINISHED")
        for _ in range(2):
            assert main([str(tmp_path / "runs")]) == 0
            check(server.uri, folders)
            server.kill()
            server.start()
        check(server.uri, folders)


def wait_for_text(path: Path, words: str, seconds: float = 120.0) -> None:
    """Wait until a file holds some words."""
    until = time.monotonic() + seconds
    while words not in path.read_text():
        assert time.monotonic() < until, path.read_text()
        time.sleep(0.2)
