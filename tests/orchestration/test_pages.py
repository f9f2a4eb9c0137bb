"""MLflow's pages as a browser draws them: a study's table and charts, and a run's pictures; `geta ui` on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.cli_sync import main as sync
from orchestration.pictures import draw
from orchestration.services.processes import answers
from orchestration.tracking.jsonl import Journal
from orchestration.tracking.views import BARS, COLUMNS, view_address
from tests.orchestration.tracked import TAGS, copies, write_result, write_run
from tests.orchestration.watched import Watched, outside
from tests.ports import own_port

pytestmark = [pytest.mark.needs("chromium", "proc"), pytest.mark.timeout(280)]

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = (
    "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--virtual-time-budget=20000",
)  # fmt: skip


def write_one(folder: Path, method: str, accuracy: float) -> None:
    """Write the directory of a finished run of a cell, as a training leaves it."""
    tags = {**TAGS, "geta.method": method}
    files = ["pictures", "metrics.jsonl"]
    write_run(folder, None, 5, cell=method, experiment="pages", tags=tags, files=files, status="FINISHED")
    result = write_result(folder, 0, accuracy)
    journal = Journal(folder)
    journal.open_at(journal.offset())
    journal.append("final", (5, 5), "joint", result.numbers())
    assert draw(result, journal.lines(), folder / "pictures"), "needs matplotlib"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A study of two methods, and `geta ui` that shows it."""
    runs = tmp_path_factory.mktemp("pages") / "runs"
    for name, method, accuracy in (
        ("one", "geta", 0.875), ("more", "geta", 0.875), ("two", "qat_only", 0.75), ("three", "qat_only", 0.75)
    ):  # fmt: skip
        write_one(runs / name, method, accuracy)
    assert sync([str(runs)]) == 0
    port = own_port(5950)
    command = [sys.executable, "-m", "sweeps.cli", "ui", str(runs), "--port", str(port), "--no-browser"]
    server = Watched(command, runs / "ui.log", {}, ROOT)
    try:
        server.until(lambda: answers(f"http://127.0.0.1:{port}"))
        server.until(lambda: "viewStateShareKey" in server.text())
        found = copies(f"sqlite:///{runs / 'mlflow.db'}", "pages")
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}", server=server, runs=found, folder=runs)
    finally:
        server.process.send_signal(signal.SIGINT)
        server.wait()
    assert not server.alive()


def drawn(address: str, folder: Path, *words: str, width: int = 1800) -> str:
    """Return the document of a page after its scripts have run.

    A page that waits for a busy server is cut off by the browser's clock, which runs ahead: it is opened again then,
    until the words are in it, three times at most.
    """
    command = [*CHROMIUM, f"--window-size={width},1400", f"--user-data-dir={folder / 'browser'}", "--dump-dom", address]
    page = ""
    for _ in range(3):
        page = subprocess.run(
            command, capture_output=True, text=True, timeout=80, check=True, env={**os.environ}
        ).stdout
        if all(word in page for word in words):
            break
    return page


def experiment(pages: Any) -> str:
    return str(pages.runs[0].info.experiment_id)


def test_the_table_shows_accuracy_sparsity_bits_and_bops(pages: Any, tmp_path: Path) -> None:
    columns = [column.removeprefix("metrics.`").removesuffix("`") for column in COLUMNS]
    words = (*columns, "geta", "qat_only", "0.875", "0.75", "4.5", "0.01")
    page = drawn(view_address(pages.address, experiment(pages)), tmp_path, *words, width=2400)  # columns side by side
    for word in words:
        assert word in page, word


def test_the_charts_compare_two_methods(pages: Any, tmp_path: Path) -> None:
    words = ("Compressed models", *(f"final/{name}" for name in BARS[:3]), "geta", "qat_only")
    page = drawn(view_address(pages.address, experiment(pages), charts=True), tmp_path, *words)
    for word in words:
        assert word in page, word


def test_a_run_shows_its_pictures(pages: Any, tmp_path: Path) -> None:
    run = next(each for each in pages.runs if each.info.run_name == "one")
    place = f"{pages.address}/#/experiments/{experiment(pages)}/runs/{run.info.run_id}/artifacts"
    page = drawn(f"{place}/pictures/training.png", tmp_path, "training.png", "pictures")
    assert "training.png" in page and "pictures" in page
    assert "<img" in page.partition("training.png")[2] or 'src="blob:' in page or "get-artifact" in page


def test_the_pages_are_served_on_loopback_alone(pages: Any) -> None:
    assert any("mlflow" in title or "uvicorn" in title for _, title in pages.server.listening), pages.server.listening
    assert not outside(pages.server.listening)
