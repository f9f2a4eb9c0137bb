"""Ablations: variants differ in one resolved key, grids resume, and a table, figures, a record and a page follow."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from geta_core.errors import ConfigError
from orchestration.rundir import RunDirectory
from sweeps import Ablation
from sweeps.ablations.cli import main
from sweeps.ablations.spec import known, read
from sweeps.figures.tracked import log_figures
from sweeps.pages import sheet_of
from sweeps.records import faults_of, read_record, runs_of
from sweeps.report import report
from sweeps.report.cli import main as report_main
from tests.sweeps.made import cells

GOLDEN = Path(__file__).with_name("golden")
QUICK = ("run.steps=40", "run.threads=1")
TOPICS = {"stages", "saliency", "forgetting", "step_size", "bit_range", "periods", "heads"}


def file_of(folder: Path, variants: object, **changes: object) -> str:
    base = {"keys": ["task=digits", "method=geta", *QUICK, "tracker=jsonl"], "seeds": [0], "scale": "smoke"}
    values = {"title": "t", "about": "a", "bases": {"digits": base}, "variants": variants, **changes}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def test_every_ablation_changes_one_key_of_every_base() -> None:
    assert set(known()) == TOPICS
    for name in known():
        spec = read(name)
        for base in spec.bases:
            plan = Ablation(spec, base).plan(Path("nowhere"))  # raises where a variant changes two
            assert list(plan) == ["base", *spec.variants]


def test_two_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one key"):
        read(file_of(tmp_path, {"two": {"method.without": "warmup", "method.eta": 0.9}}))
    # One stated key that brings others along is refused as well: the resolved configuration decides.
    choice = Ablation.load(file_of(tmp_path, {"optimizer": {"optimizer": "adamw"}, "same": {"method.sparsity": 0.5}}))
    with pytest.raises(ConfigError) as caught:
        choice.plan(tmp_path)
    first, second = caught.value.faults
    assert "'optimizer' must differ from the base in exactly one resolved key, but changes" in first
    assert "optimizer.lr" in first and "optimizer.name" in first
    assert "'same'" in second and "changes nothing" in second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage"], "stages"),
        (["stages", "base=digit"], "digits"),
        (["stages", "variants=[no warmup]"], "no warm-up"),
        (["stages", "--dry"], "--dry-run"),
        (["stages", "seeds=[x]"], "seeds"),
        (["stages", "method.sparsty=0.2"], "sparsity"),
        (["a", "b"], "one ablation"),
    ],
)
def test_bad_input_is_said(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"output={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the stages on digits: a part of the grid first, then all of it; MLflow gets the first cell."""
    folder = tmp_path_factory.mktemp("stages")
    short = ["stages", f"output={folder}", "tracker=jsonl", *QUICK]
    assert main([*short, "seeds=[0,1]", "variants=[no joint stage]"]) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert len(before) == 4
    assert main([*short, "seeds=[0]", f"record={folder}/record.json"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    return folder


def test_every_variant_runs_and_is_compared(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablation = Ablation.load("stages", values=[*QUICK, "tracker=jsonl"], seeds=[0, 1])
    found = ablation.collect(stages)
    assert {name: sorted(own) for name, own in found.results.items()} == {
        "base": [0, 1], "no warm-up": [0], "no projection": [0], "no joint stage": [0, 1], "no cool-down": [0],
    }  # fmt: skip
    assert len(found.missing()) == 3
    # The promises hold whatever is left out: half of the groups, and whole bits in their range.
    for own in found.results.values():
        for each in own.values():
            assert each.group_sparsity == pytest.approx(0.5, abs=0.01)
            assert all(4 <= row["weight_bits"] <= 8 and row["weight_bits"].is_integer() for row in each.layers)
    sheet = ablation.sheet(found.results)
    assert [row[0] for row in sheet.rows] == list(found.results)
    assert sheet.rows[3][1] == "method.without=joint" and sheet.rows[3][5] in ("no", "better", "worse")
    assert re.search(r"[+-]\d+\.\d\d \[", sheet.rows[3][4])
    assert main(["stages", f"output={stages}", "tracker=jsonl", *QUICK, "seeds=[0,1]", "--show", "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "seed 1: " not in shown and "| no joint stage" in shown
    assert {path.name for path in stages.rglob("figures/*.png")} == {
        "differences.png", "layers.png", "stages.png", "trade_off.png",
    }  # fmt: skip


def test_its_record_holds(stages: Path) -> None:
    record = read_record(stages / "record.json")
    assert (record["kind"], record["name"], record["base"]) == ("ablation", "stages", "digits")
    rows = runs_of(record)
    assert [row["cell"] for row in rows] == ["base", "no warm-up", "no projection", "no joint stage", "no cool-down"]
    for row in rows:
        assert [fault for fault in faults_of(row) if "modified" not in fault] == []
        assert str(stages) not in str(row["metrics"]) + str(row["config"])
    sheet = sheet_of(record)
    assert sheet is not None and [row[0] for row in sheet.rows] == [row["cell"] for row in rows]


def test_the_page_needs_nothing_else(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = stages / "page.html"
    found = report(stages, page)
    text = page.read_text()
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 4
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import', text)
    for own in found.results.values():
        for each in own.values():
            assert each.digest in text
    assert "pairs of seeds" in text
    assert report_main([str(stages), f"output={page}", "reference=no_warm-up"]) == 0
    assert "7 runs in 5 cells" in capsys.readouterr().out
    assert report_main([str(stages), "reference=bass"]) == 2
    assert report_main([str(stages / "figures")]) == 2


def test_pictures_go_to_one_run_of_the_study_in_mlflow(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    ablation = Ablation.load(file_of(tmp_path, {"a": {"method.eta": 0.9}}), values=["tracker=mlflow"])
    plan = {"base": ablation.plan(tmp_path)["base"]}
    from sweeps.grid import run_grid

    found = run_grid(plan)
    picture = tmp_path / "x.png"
    picture.write_bytes(b"first")
    assert log_figures(found.folders(), [picture]) == log_figures(found.folders(), [picture]) == 1
    place = RunDirectory.of(plan["base"][0]).path
    client = MlflowClient(f"sqlite:///{place.parent / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "ablate-own-digits"]
    (run,) = client.search_runs([experiment.experiment_id], "tags.`geta.level` = 'figures'")
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["x.png"]


def test_golden_table(golden: Callable[[Path, str], None]) -> None:
    found = cells(
        {
            "base": [(98.1, 1.0), (98.4, 1.1), (98.2, 1.0)],
            "no warm-up": [(98.0, 1.1), (98.4, 1.0), (98.3, 1.1)],
            "no projection": [(97.0, 1.2), (97.1, 1.2), (97.2, 1.3)],
            "no cool-down": [(40.0, 1.0), (41.0, 1.1), (40.4, 1.0)],
        }
    )
    golden(GOLDEN / "stages.md", Ablation.load("stages").render(found, "markdown"))


def test_a_smoke_base_says_so(tmp_path: Path) -> None:
    sheet = Ablation.load("stages", "resnet20_smoke").sheet(cells({"base": [(30.0, 9.0)]}))
    assert any(note.startswith("smoke: ") for note in sheet.notes)
    assert any("one pair" in note or "no pair" in note for note in sheet.notes)
