"""The published tables: their data, verdicts, golden renderings, and one small table from its runs to its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geta_core.errors import ArtifactError, ConfigError
from orchestration.compose import compose
from sweeps import Table
from sweeps.estimate import StepTimes, arguments_of
from sweeps.grid import Found
from sweeps.records import save_record
from sweeps.tables.cli import main
from sweeps.tables.spec import Column, Published, known, read
from sweeps.tables.verdict import verdict
from tests.sweeps.made import cells, config, result

GOLDEN = Path(__file__).with_name("golden")
RUNNABLE = ("resnet20_cifar10", "resnet56_stages", "vgg7_cifar10")
ACCURACY = Column(label="accuracy", measure="accuracy", better="higher", margin=0.5)
BOPS = Column(label="BOPs", measure="relative_bops", better="lower", margin=0.1, unit="share")
SMALL = {
    "title": "digits",
    "source": "nowhere",
    "columns": {
        "accuracy": {"label": "accuracy", "measure": "accuracy", "better": "higher", "margin": 30, "unit": "points"},
        "bops": {"label": "BOPs", "measure": "relative_bops", "better": "lower", "margin": 0.1, "unit": "share"},
    },
    "keys": ["task=digits", "run.threads=1", "tracker=jsonl"],
    "scales": {"full": {"seeds": [0, 1], "keys": ["run.steps=40"]}, "smoke": {"seeds": [0], "keys": ["run.steps=36"]}},
    "rows": [
        {
            "name": "dense",
            "keys": ["method=dense"],
            "published": {"bops": {"value": 100, "mark": "verbatim", "source": "by definition"}},
        },
        {
            "name": "geta",
            "keys": ["method=geta"],
            "published": {
                "accuracy": {"value": 75, "mark": "recalled", "source": "literature"},
                "bops": {"value": 25, "mark": "second-hand", "source": "told"},
            },
        },
        {"name": "other", "reason": "it does not exist"},
    ],
}


def stated(value: float) -> Published:
    return Published(value=value, mark="verbatim", source="here")


@pytest.mark.parametrize("name", known())
def test_every_table_is_complete_data(name: str) -> None:
    spec = read(name)
    assert {row.cell(key).mark for row in spec.rows for key in spec.columns} <= {
        "verbatim", "second-hand", "recalled", "calculated", "missing",
    }  # fmt: skip
    assert bool(spec.scales) == (name in RUNNABLE)
    for scale in spec.scales:
        plan = Table(spec, scale).plan(Path("nowhere"))
        assert list(plan) == [row.name for row in spec.rows if row.keys]
        assert len({each.digest() for own in plan.values() for each in own.values()}) == sum(map(len, plan.values()))
    shown = Table(spec).render({}, "markdown")
    for row in spec.rows:
        for key in spec.columns:
            cell = row.cell(key)
            if cell.mark == "recalled":
                assert f"{cell.value:.2f} (recalled)" in shown
        assert not row.reason or row.reason in shown


def test_the_margins_stand_in_the_data() -> None:
    for name in RUNNABLE:
        columns = read(name).columns
        assert (columns["accuracy"].margin, columns["accuracy"].unit) == (0.5, "points")
        assert (columns["bops"].margin, columns["bops"].unit) == (0.1, "share")


@pytest.mark.parametrize(
    ("values", "published", "column", "expected"),
    [
        ([92.4, 92.6, 92.5], 92.57, ACCURACY, "REPRODUCED"),
        ([93.0, 93.2, 93.1], 92.57, ACCURACY, "REPRODUCED"),  # the interval reaches the margin, and is narrow
        ([94.0, 94.1, 94.2], 92.57, ACCURACY, "BETTER"),
        ([90.0, 90.1, 90.2], 92.57, ACCURACY, "DIFFERENT"),
        ([90.0, 99.0, 96.0], 92.57, ACCURACY, "DIFFERENT"),  # better on average, told by nothing
        ([8.4, 8.5, 8.45], 4.5, BOPS, "DIFFERENT"),
        ([4.5, 4.8, 4.7], 4.5, BOPS, "REPRODUCED"),
        ([3.0, 3.1, 3.05], 4.5, BOPS, "BETTER"),
        ([92.5, 92.5], 92.57, ACCURACY, "NOT RUN"),  # one of three seeds is missing
        ([], 92.57, ACCURACY, "NOT RUN"),
    ],
)
def test_verdicts(values: list[float], published: float, column: Column, expected: str) -> None:
    assert verdict(values, 3, stated(published), column) == expected


def test_one_seed_and_an_unknown_value_give_no_verdict() -> None:
    assert verdict([92.57], 1, stated(92.57), ACCURACY) == "NOT RUN"
    assert verdict([92.5, 92.6], 2, Published(mark="missing"), ACCURACY) == ""


@given(st.lists(st.floats(80, 100), min_size=2, max_size=6), st.floats(80, 100))
def test_better_is_never_said_while_the_interval_reaches_the_margin(values: list[float], published: float) -> None:
    found = verdict(values, len(values), stated(published), ACCURACY)
    if max(values) == min(values):
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    if found == "BETTER":
        assert low > published + 0.5 - 1e-9
    if found == "DIFFERENT":
        assert abs(sum(values) / len(values) - published) > 0.5 - 1e-9
    assert found == "BETTER" or not low > published + 0.5 + 1e-9 or high - low <= 1e-6


@pytest.mark.parametrize(("style", "ending"), [("text", "txt"), ("markdown", "md"), ("latex", "tex"), ("html", "html")])
def test_golden_renderings(style: str, ending: str, golden: Callable[[Path, str], None]) -> None:
    """Every verdict, mark and missing cell, from made results."""
    found = cells(
        {
            "Baseline": [(93.1, 100.0), (93.2, 100.0), (92.9, 100.0)],
            "DJPQ": [(93.5, 0.47), (93.6, 0.48), (93.55, 0.49)],
            "BB (mu = 0.1)": [(88.0, 0.2), (88.2, 0.21), (88.1, 0.2)],
            "GETA": [(92.5, 0.42), (92.6, 0.41)],
        }
    )
    golden(GOLDEN / f"vgg7.{ending}", Table(read("vgg7_cifar10")).render(found, style))  # type: ignore[arg-type]


def test_scales_are_never_mixed(tmp_path: Path) -> None:
    save_record(Found({}), {"kind": "table", "name": "vgg7_cifar10", "scale": "smoke"}, tmp_path / "smoke.json")
    with pytest.raises(ArtifactError, match="'scale': 'full'"):
        Table.load("vgg7_cifar10").from_record(tmp_path / "smoke.json")
    smoke = Table.load("vgg7_cifar10", "smoke")
    assert smoke.plan(tmp_path)["GETA"][0].run.output != Table.load("vgg7_cifar10").plan(tmp_path)["GETA"][0].run.output
    shown = smoke.render(cells({"GETA": [(40.0, 0.4), (41.0, 0.4)]}), "markdown")
    assert "92.57" not in shown  # no published number stands beside a small run
    assert all(word not in shown for word in ("REPRODUCED", "BETTER", "DIFFERENT"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run a table of two rows at full scale, after a part of it; return its file and the folder of the runs."""
    folder = tmp_path_factory.mktemp("table")
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL, sort_keys=False))
    part = Table.load(str(file), only=["dense"]).run(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert list(part.results) == ["dense"]
    record = folder / "record.json"
    assert main([str(file), "--run", f"output={folder}", f"record={record}"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    return file, folder


def test_a_table_from_its_runs_to_its_verdicts(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = small
    table = Table.load(str(file))
    found = table.collect(folder)
    assert not found.failures and not found.missing()
    assert {row: sorted(own) for row, own in found.results.items()} == {"dense": [0, 1], "geta": [0, 1]}
    rows = {row[0]: row for row in table.sheet(found.results).rows}
    assert rows["dense"][4:] == ["100", "100.00 ± 0.00", "REPRODUCED", "2 of 2"]
    assert rows["geta"][1] == "75 (recalled)" and rows["geta"][6] == "BETTER"
    accuracy = [100 * each.accuracy for each in found.results["geta"].values()]
    assert rows["geta"][3] == verdict(accuracy, 2, stated(75), table.spec.columns["accuracy"])
    assert rows["other"][3] == "NOT RUN"
    assert table.sheet(table.from_record(folder / "record.json")).rows == table.sheet(found.results).rows
    assert {path.name for path in folder.rglob("figures/*.png")} == {"trade_off.png", "layers.png", "stages.png"}
    # The other scale has no result, though the runs of this one lie beside it.
    assert not Table.load(str(file), "smoke").collect(folder).results
    assert main([str(file), f"output={folder}", "--html"]) == 0
    assert "<td" in capsys.readouterr().out


def test_a_result_of_another_configuration_does_not_count(small: tuple[Path, Path]) -> None:
    file, folder = small
    found = Table.load(str(file), values=["optimizer.lr=0.02"]).collect(folder)
    assert not found.results
    assert all("another configuration" in reason for reason in found.failures.values()) and len(found.failures) == 4


def test_dry_run_prints_commands_that_give_the_same_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for own in Table.load("vgg7_cifar10").plan(Path("runs")).values():
        assert compose(arguments_of(own[0])).to_dict() == own[0].to_dict()
    assert main(["vgg7_cifar10", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("geta run task=cifar10 model=vgg7") == 18
    assert "18 runs; GPU hours in all: unknown" in said
    assert not list(tmp_path.iterdir())


def test_gpu_hours_come_from_a_recorded_step(tmp_path: Path) -> None:
    wanted = config("method=geta", "run.steps=7200")
    row = result(90, 1, device="NVIDIA H100", seconds={"train": 50.0}, steps=100)
    plan = {"a": {0: config("method=geta", "run.steps=100")}}
    save_record(Found(plan, {"a": {0: row}}), {"kind": "table"}, tmp_path / "gpu.json")
    times = StepTimes(tmp_path)
    assert times.hours(wanted) == (1.0, "NVIDIA H100")  # 7,200 steps of half a second
    epochs = times.hours(config("method=geta", "run.epochs=10"))
    assert epochs is not None and epochs[0] == pytest.approx(10 * 19 * 0.5 / 3600)  # 1,257 images in batches of 64
    assert times.hours(config("method=dense", "run.steps=7200")) is None
    assert times.hours(config("method=geta", "model.width=8", "run.steps=7200")) is None
    slow = result(90, 1, device="cpu")
    save_record(Found(plan, {"a": {0: slow}}), {"kind": "table"}, tmp_path / "gpu.json")
    assert StepTimes(tmp_path).hours(wanted) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vgg_cifar10"], "did you mean"),
        (["vgg7_cifar10", "scale=tiny"], "full or smoke"),
        (["vgg7_cifar10", "rows=[GETTA]"], "GETA"),
        (["vgg7_cifar10", "--run", "--dry-run"], "only one"),
        (["vgg7_cifar10", "--markdwon"], "--markdown"),
        (["bert_squad", "--run"], "question-answering"),
        (["vgg7_cifar10", "--dry-run", "method.sparsty=1"], "sparsty"),
        ([], ""),
    ],
)
def test_bad_input_is_said(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == (2 if arguments else 0)
    captured = capsys.readouterr()
    assert words in captured.err and "Traceback" not in captured.err


def test_a_faulty_file_names_every_fault(tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(SMALL))
    wrong["rows"][0]["published"]["bops"]["value"] = None
    wrong["rows"][1]["published"]["accuracy"]["source"] = ""
    wrong["rows"][1]["published"]["bopz"] = {"mark": "missing"}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError) as caught:
        read(str(file))
    assert len(caught.value.faults) == 3
    wrong = {**SMALL, "rows": [*SMALL["rows"], {"name": "dense", "keys": ["method=geta"], "reason": "none"}]}  # type: ignore[dict-item, misc]
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError) as caught:
        read(str(file))
    assert any("stands twice" in fault for fault in caught.value.faults)
    assert any("either keys" in fault for fault in caught.value.faults)
