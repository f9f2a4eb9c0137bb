"""``geta measure`` and ``geta export`` on one finished run."""

from __future__ import annotations

import csv
import io
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import geta_core as geta
from geta_core.artifact.manifest import MANIFEST, dumps
from orchestration.compose import compose
from orchestration.result import RunResult
from orchestration.run import run
from sweeps.cli import main
from tests.orchestration.small import small


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run under a budget of BOPs, with latencies."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(compose(small(folder, "method.budget_bops=0.01", "method.allowed_bits=[2,4,6,8,10,12]", "run.latency=true")))
    return folder


def test_the_run_keeps_its_budget(finished: Path) -> None:
    result = RunResult.load(finished / "result.json")
    assert 0.009 <= result.relative_bops <= 0.01
    assert {row["weight_bits"] for row in result.layers} <= {2, 4, 6, 8, 10, 12}


def test_a_table_and_a_sheet(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "layers.csv"
    assert main(["measure", str(finished), "--csv", str(sheet)]) == 0
    text = capsys.readouterr().out
    result = RunResult.load(finished / "result.json")
    for words in (f"{result.bytes:,} bytes of tensors", "header", "graph", "rest of the manifest", "audit: bits and"):
        assert words in text, words
    rows = list(csv.DictReader(io.StringIO(sheet.read_text())))
    assert [row["layer"] for row in rows] == [layer["name"] for layer in result.layers]
    assert sum(float(row["relative BOPs"]) for row in rows) == pytest.approx(result.relative_bops, rel=1e-9)
    assert sum(float(row["MACs"]) for row in rows) == pytest.approx(result.macs)
    assert 0 < sum(int(row["bytes"]) for row in rows) < result.bytes
    assert main(["measure", str(finished / "artifact"), "--csv", "-"]) == 0
    assert capsys.readouterr().out == sheet.read_text()


def test_a_number_that_the_files_do_not_bear_out(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(finished / "artifact", tmp_path / "artifact"))
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["report"]["relative_bops"] /= 2
    (copy / MANIFEST).write_bytes(dumps(manifest))
    assert main(["measure", str(copy)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "audit" in error and "is stated" in error


@pytest.mark.needs("onnx", "onnxruntime", "onnxscript")
def test_latencies_stand_in_the_result(finished: Path) -> None:
    result = RunResult.load(finished / "result.json")
    assert list(result.latency) == ["dense float", "slimmed float", "slimmed integer"]
    for own in result.latency.values():
        assert list(own) == ["1", "64"]
        assert all(0 < timing["low"] <= timing["median"] <= timing["high"] for timing in own.values())
    final = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert final["seconds"]["final/slimmed_integer_ms/batch_64"] == pytest.approx(
        1000 * result.latency["slimmed integer"]["64"]["median"]
    )


@pytest.mark.needs("onnx", "onnxruntime", "onnxscript")
def test_files_for_other_runtimes(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx, pt2 = tmp_path / "model.onnx", tmp_path / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # a user can do nothing about torch's own
        assert main(["export", str(finished), "--onnx", str(onnx), "--pt2", str(pt2)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, path in zip(lines, (onnx, pt2), strict=True):
        assert line.startswith(f"{path}: {path.stat().st_size:,} bytes; the same answer as the original on ")
        assert "of 360 test examples" in line
    assert main(["export", str(finished / "artifact"), "--pt2", str(pt2)]) == 0
    assert "the same answer" not in capsys.readouterr().out
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        gap = (torch.export.load(pt2).module()(x) - geta.load(finished / "artifact")(x)).abs().max()
    assert float(gap) <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name at least one file"),
        (["--onnx", "absent/folder/model.onnx"], "a file in a folder that exists"),
        (["--pt2", "."], "a file in a folder that exists"),
    ],
)
def test_wrong_arguments(finished: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(finished), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert main(["export", "no such run", "--pt2", "model.pt2"]) == 2
    assert not Path("model.pt2").exists()
