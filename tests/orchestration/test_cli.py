"""The console script: quick to start, explains itself, and ends what it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from orchestration import cli_run
from orchestration.console import table
from orchestration.progress import describe, open_progress
from orchestration.records import code_state, environment
from orchestration.result import RunResult
from orchestration.tracking.base import Line
from orchestration.tracking.store import open_store
from orchestration.tracking.views import set_view, view_address
from sweeps.cli import COMMANDS, main
from tests.orchestration.small import small
from tests.ports import own_port

GETA = [sys.executable, "-m", "sweeps.cli"]
START_SECONDS = 0.5
"""Start-up bound of `geta --help`, in seconds of processor time: the wall clock of a loaded machine says nothing."""


def test_help_starts_at_once_and_imports_nothing_heavy() -> None:
    code = "import sys, sweeps.cli; sweeps.cli.main(['--help'])"
    times = []
    for _ in range(3):
        before = os.times()
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert statistics.median(times) <= START_SECONDS
    assert all(name in out for name in COMMANDS)
    code = f"{code.replace('sweeps.cli.main', 'sweeps.cli._parser(); print')}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "hydra", "mlflow", "rich", "yaml"} & set(loaded)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"geta (\d+\.\d+\.\d+\S*|\(not installed\))\n", capsys.readouterr().out)


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_run_explains_groups_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    text = capsys.readouterr().out
    for words in (
        "model=NAME, one of:", "resnet20", "task=NAME, one of: cifar10, digits, image_folder", "method=NAME, one of:",
        "method.sparsity = 0.5", "0 <= sparsity < 1", "run.checkpoint_every = 500", "optimizer.lr = 0.1",
        "scheduler=NAME: one of cosine, step", "tracker=NAME: one of mlflow, jsonl", "launcher=NAME: one of local",
        "run.resume = auto   (one of auto, never, must)", "model.weights = null", "examples:",
    ):  # fmt: skip
        assert words in text, words
    assert main(["run", "method=qat_only", "task=cifar10", "--help"]) == 0
    text = capsys.readouterr().out
    assert "keys of method=qat_only" in text and "task.download = false" in text and "method.sparsity =" not in text


@pytest.mark.parametrize("group", ["models", "tasks", "methods"])
def test_lists(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group]) == 0
    text = capsys.readouterr().out
    expected = {"models": "model=resnet20", "tasks": "task.root", "methods": "method=prune_then_ptq"}
    assert expected[group] in text
    assert main([group, "nothing_like_it"]) == 2


def test_show_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--show", "method=dense", "run.seed=4"]) == 0
    import yaml

    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["method"] == {"name": "dense"} and tree["run"]["seed"] == 4


def test_a_run_from_the_command_line_prints_its_numbers(
    finished: RunResult, finished_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_run.main(small(finished_directory, "method.activation_bits=[4,8]")) == 0
    out = capsys.readouterr().out
    assert f"test accuracy {finished.accuracy:.2%}" in out and str(finished_directory) in out


def test_a_comparison_matches_bits_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "model.width=6", "run.steps=24", "task.batch_size=32", "run.threads=1", "tracker=jsonl"]
    arguments += ["geta:method.projection_periods=2", "geta:method.pruning_periods=2", "geta:method.sparsity=0.25"]
    arguments += ["qat_only:method.projection_periods=2", "prune_then_ptq:method.pruning_periods=2"]
    assert main([*arguments, "output=out"]) == 0
    out = capsys.readouterr().out
    results = {}
    for path in (tmp_path / "out").glob("*/result.json"):
        result = RunResult.load(path)
        results[result.method] = result
    assert list(results) and set(results) == {"dense", "geta", "qat_only", "prune_then_ptq"}
    for name, result in results.items():
        row = next(line for line in out.splitlines() if name in line and "│" in line)
        assert f"{100 * result.accuracy:.2f}" in row and f"{result.bytes:,}" in row
        assert result.steps == 24
    geta, pruned, quantized = (results[name] for name in ("geta", "prune_then_ptq", "qat_only"))
    assert pruned.group_sparsity == geta.group_sparsity == pytest.approx(0.25, abs=0.03)
    for other in (pruned, quantized):
        assert other.weight_bits == -(-geta.weight_bits // 1) and other.activation_bits == -(-geta.activation_bits // 1)
    assert quantized.group_sparsity == 0 and results["dense"].relative_bops == 1
    assert "make ui" in out
    assert main(["compare", "methods=[gta]", "seeds=x"]) == 2
    assert main(["compare", "--help"]) == 0


def test_tables_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    table("title", ["name", "bits"], [["geta", "4.25"], ["a longer name", "32"]])
    assert capsys.readouterr().out.splitlines() == [
        "title", "name           bits", "-------------  ----", "geta           4.25", "a longer name    32",
    ]  # fmt: skip


def test_progress_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line(
        "stage", 20, 1, "joint", 0, {"stage/train/loss": 0.5, "stage/val/accuracy": 0.925, "stage/weight_bits": 4.5}
    )
    assert describe(line, 40) == "stage joint done  step 20/40  loss 0.5000  val 92.50%  W 4.50"
    with open_progress(40, 0, "run") as progress:
        progress.advance(1)
        progress.line(line)
    assert capsys.readouterr().err == describe(line, 40) + "\n"


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with open_progress(40, 10, "the run") as progress:
        progress.advance(20)
        progress.say("[not markup]")
    err = capfd.readouterr().err
    assert "[not markup]" in err and "the run" in err


def test_a_record_names_code_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "/x/bin/geta", "run", "run.output=a b"])
    found = environment("cpu")
    assert found["command"] == "geta run 'run.output=a b'" and "torch" in found["versions"]
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "orchestration.run"])
    assert environment("cpu")["command"] == "python3 -m orchestration.run"
    state = code_state()
    assert state is None or (len(state["commit"]) == 40 and isinstance(state["modified"], bool))


def wait_for_words(path: Path, words: str) -> str:
    until = time.monotonic() + 60
    while words not in path.read_text():
        assert time.monotonic() < until, path.read_text()
        time.sleep(0.1)
    return path.read_text()


def test_the_pages_open_and_close(tmp_path: Path) -> None:
    """`geta ui` serves the local store on loopback and leaves no process when it is ended."""
    import psutil

    assert main(["ui", str(tmp_path)]) == 2, "there is no store yet"
    client, experiment = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}", "shown")
    set_view(client, experiment)
    set_view(client, experiment)
    port = own_port(5600)
    log = (tmp_path / "log").open("wb")
    command = [*GETA, "ui", str(tmp_path), "--port", str(port), "--no-browser"]
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while time.monotonic() < until and address not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        query = urllib.request.Request(
            f"{address}/api/2.0/mlflow/experiments/search", json.dumps({"max_results": 10}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(query, timeout=30) as response:
            names = [each["name"] for each in json.load(response)["experiments"]]
        assert "shown" in names
        assert f"shown: {view_address(address, experiment)}\n" in wait_for_words(
            tmp_path / "log", "compareRunsMode=CHART"
        )
        children = psutil.Process(process.pid).children(recursive=True)
        listening = [
            connection.laddr.ip
            for child in children
            for connection in child.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening and set(listening) == {"127.0.0.1"}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
