"""Every committed record is read again, the pages show what the records hold, and a damaged record is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.cli_records import main
from sweeps.grid import Found
from sweeps.pages import launchers_sheet, rewritten
from sweeps.records import check_records, faults_of, run_record, save_record
from tests.sweeps.made import config, result

ROOT = Path(__file__).resolve().parents[2]


def test_the_repository_s_records_hold_and_its_pages_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([f"root={ROOT}"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "0 faults" in captured.out
    assert int(captured.out.split()[0]) > 85


def good() -> dict[str, Any]:
    return run_record(result(98, 1), config(), "geta")


def test_a_good_record_has_no_fault() -> None:
    assert faults_of(good()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda row: row.pop("seconds"), "must hold seconds"),
        (lambda row: row["environment"].pop("command"), "environment must hold command"),
        (lambda row: row["environment"]["versions"].pop("torch"), "versions must hold torch"),
        (lambda row: row["environment"]["code"].update(modified=True), "had been modified"),
        (lambda row: row["environment"]["code"].update(commit="abc"), "must be a commit"),
        (lambda row: row.update(digest="zz"), "digest"),
        (lambda row: row["config"].update({"method.sparsity": 0.9}), "digest must be that of its configuration"),
        (lambda row: row.update(seed=3), "run.seed is 0 in its configuration and 3 beside it"),
        (lambda row: row.update(weight_bits=40.0), "weight_bits must lie in 1 to 32"),
        (lambda row: row["metrics"].update({"test/accuracy": 98.0}), "metrics.test/accuracy must lie in 0 to 1"),
        (lambda row: row["metrics"].pop("test/accuracy"), "metrics must hold test/accuracy"),
        (lambda row: row.update(relative_bops=0.02), "relative_bops must be that of its layers"),
        (lambda row: row.update(relative_bops=float("nan")), "relative_bops"),
        (lambda row: row["seconds"].pop("train"), "seconds must hold train"),
    ],
)
def test_damage_is_found(damage: Callable[[dict[str, Any]], Any], words: str) -> None:
    row = copy.deepcopy(good())
    damage(row)
    assert any(words in fault for fault in faults_of(row)), faults_of(row)


def written(folder: Path) -> Path:
    plan = {"geta": {0: config(), 1: config(seed=1)}, "dense": {0: config(), 1: config(seed=1)}}
    results = {
        cell: {seed: result(accuracy + seed, 1.0, seed=seed, digest=plan[cell][seed].digest()) for seed in (0, 1)}
        for cell, accuracy in (("geta", 98.0), ("dense", 97.0))
    }
    difference = {"dense": {"mean": -1.0}}
    head = {"kind": "comparison", "reference": "geta", "differences": difference}
    save_record(Found(plan, results), head, folder / "some.json")
    (folder / "README.md").write_text("| `some.json` | something |\n")
    return folder / "some.json"


def test_a_folder_of_records_is_checked(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert check_records(tmp_path) == (4, [])
    content = json.loads(path.read_text())
    content["differences"]["dense"]["mean"] = -2.0
    path.write_text(json.dumps(content))
    assert any("difference of dense to geta" in fault for fault in check_records(tmp_path)[1])
    path.write_text("[]")
    assert any("holds no run" in fault for fault in check_records(tmp_path)[1])
    path.write_text("{")
    assert any("is no record" in fault for fault in check_records(tmp_path)[1])
    path.rename(tmp_path / "other.json")
    faults = check_records(tmp_path)[1]
    assert any("does not name it" in fault for fault in faults)
    (tmp_path / "other.json").write_text(json.dumps({"points": [1], "environment": good()["environment"]}))
    assert not any("environment" in fault for fault in check_records(tmp_path)[1])
    (tmp_path / "other.json").write_text('{"points": [1]}')
    assert any("environment of a measurement" in fault for fault in check_records(tmp_path)[1])
    (tmp_path / "list.jsonl").write_text('{"commit": "12345678"}\n{"commit": 3}\nnothing\n')
    assert sum("list.jsonl: line" in fault for fault in check_records(tmp_path)[1]) == 2


def test_pages_are_rewritten_from_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "docs" / "records"
    folder.mkdir(parents=True)
    path = written(folder)
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- records: docs/records/some.json -->\nold\n<!-- end of records -->\nafter\n")
    assert main([f"root={tmp_path}"]) == 2
    assert "geta check-records --write" in capsys.readouterr().err
    assert page.read_text().count("\nold\n") == 1
    assert main([f"root={tmp_path}", "--write"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    assert "| dense    |      97.50 ± 0.71 |" in text and "2 pairs of seeds" in text
    assert rewritten(text, tmp_path) == text
    assert main([f"root={tmp_path}"]) == 0
    # A number in the page that the record does not hold is a fault, and so is a record that is gone.
    page.write_text(text.replace("97.50", "99.50"))
    assert main([f"root={tmp_path}"]) == 2
    path.unlink()
    assert main([f"root={tmp_path}"]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2


def test_a_study_under_several_launchers_is_shown_by_its_settings() -> None:
    numbers = {"weight_bits": 4.0, "activation_bits": 8.0, "group_sparsity": 0.5, "bytes": 100.0}
    trials = [
        {"method": method, "setting": setting, "seed": seed, "state": state, "values": [accuracy, 0.02], **numbers}
        | {"test/accuracy": accuracy - 0.25}
        for method, setting, seed, accuracy, state in (
            ("geta", 1, 0, 0.5, "complete"), ("geta", 0, 0, 0.75, "complete"), ("geta", 0, 1, 1.0, "complete"),
            ("djpq", 0, 0, 0.5, "complete"), ("djpq", 0, 1, 0.0, "failed"), ("pat", 0, 0, 0.0, "failed"),
        )
    ]  # fmt: skip
    sheet = launchers_sheet({"trials": trials, "launchers": {"local": {}, "ray": {}}, "differences": 0})
    assert sheet.title == "6 trials, 4 complete, under local, ray"
    assert [row[:5] for row in sheet.rows] == [
        ["djpq", "0", "1 of 2", "50.00", "25.00"],
        ["geta", "0", "2 of 2", "87.50", "62.50"],
        ["geta", "1", "1 of 1", "50.00", "25.00"],
        ["pat", "0", "0 of 1", "-", "-"],
    ]
    assert sheet.rows[0][5:] == ["50.0", "4.00 / 8.00", "2.00", "100"]
