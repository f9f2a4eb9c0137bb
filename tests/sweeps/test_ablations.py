"""Ablations: variants differ in one resolved key, bad input is said, and the table of differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from geta_core.errors import ConfigError
from sweeps import Ablation
from sweeps.ablations.cli import main
from sweeps.ablations.spec import known, read
from sweeps.pages import table_of
from sweeps.records import read_record, results_of
from tests.orchestration.small import SMALL
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


def ablate(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Vary the rate of short dense runs by the command, and return what it said."""
    keys = ["task=digits", "method=dense", "model.width=4", "run.steps=5", "run.threads=1", "tracker=jsonl"]
    base = {"keys": keys, "seeds": [0, 1], "scale": "smoke"}
    file = file_of(
        folder, {"slow": {"optimizer.lr": 0.01}, "fast": {"optimizer.lr": 0.3}}, bases={"a": base, "b": base}
    )
    assert main([file, f"output={folder / 'runs'}", *arguments]) == 0
    return capsys.readouterr().out


def results_in(folder: Path) -> dict[Path, int]:
    """Return the results of complete runs, with the times at which they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


@pytest.mark.timeout(300)
def test_one_command_gives_table_figures_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"keys": [*SMALL, "method=geta"], "seeds": [0, 1], "scale": "smoke"}
    file = file_of(tmp_path, {"no cool-down": {"method.without": "cooldown"}}, bases={"one": base})
    record = tmp_path / "record.json"
    assert main([file, f"output={tmp_path / 'runs'}", f"record={record}", "--markdown"]) == 0
    said = capsys.readouterr().out
    place = tmp_path / "runs" / "ablations" / "own" / "one"
    assert {each.name for each in (place / "figures").iterdir()} == {
        "differences.png", "layers.png", "stages.png", "trade_off.png",
    }  # fmt: skip
    # The variant lacks the stage that it says it leaves out, and removes as much.
    assert stages_of(place / "base-s0") == ["warmup", "projection", "joint", "cooldown"]
    assert stages_of(place / "no_cool-down-s0") == ["warmup", "projection", "joint"]
    kept = results_of(read_record(record))
    assert {cell: list(own) for cell, own in kept.items()} == {"base": [0, 1], "no cool-down": [0, 1]}
    assert len({each.group_sparsity for own in kept.values() for each in own.values()}) == 1
    # The printed difference is that of the recorded accuracies.
    full, less = (sum(each.accuracy for each in own.values()) / 2 for own in kept.values())
    (line,) = [line for line in said.splitlines() if line.startswith("| no cool-down")]
    assert f" {100 * (less - full):+.2f} [" in line
    # The record alone gives the table again.
    body = "\n".join(line for line in said.splitlines() if line.startswith("|"))
    record.write_text(json.dumps({**read_record(record), "name": file}))
    assert body in table_of(record)


def stages_of(run: Path) -> list[str]:
    """Return the stages that a run's journal says are over."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["stage"] for line in lines if line["kind"] == "stage"]


@pytest.mark.timeout(300)
def test_a_part_goes_on_and_what_is_complete_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "one pair of seeds: no difference" in ablate(tmp_path, capsys, "base=a", "seeds=0", "variants=slow")
    before = results_in(tmp_path)
    assert len(before) == 2
    assert "not run yet: fast" in ablate(tmp_path, capsys, "base=a", "--show")
    assert results_in(tmp_path) == before
    ablate(tmp_path, capsys, "base=a", "seeds=0")
    after = results_in(tmp_path)
    assert len(after) == 3 and before.items() <= after.items()


@pytest.mark.timeout(300)
def test_records_of_several_bases_come_after_their_last_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record in the working tree would make the next base's code a modified one."""
    options = ("base=[a,b]", "seeds=0", "variants=slow", f"record={tmp_path / 'record.json'}")
    said = ablate(tmp_path, capsys, *options).splitlines()
    kept = {base: tmp_path / f"record-{base}.json" for base in ("a", "b")}
    assert said[-2:] == [f"record: {path}" for path in kept.values()]
    for base, path in kept.items():
        record = read_record(path)
        assert record["base"] == base and len(record["results"]) == 2
    assert all(path.stat().st_mtime_ns > max(results_in(tmp_path).values()) for path in kept.values())


def test_nothing_runs_where_a_variant_changes_two_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"keys": [*SMALL, "method=geta"], "seeds": [0], "scale": "smoke"}
    variants = {"no cool-down": {"method.without": "cooldown"}, "adamw": {"optimizer": "adamw"}}
    file = file_of(tmp_path, variants, bases={"one": base})
    assert main([file, f"output={tmp_path / 'runs'}", f"record={tmp_path / 'record.json'}"]) == 2
    said = capsys.readouterr().err
    assert "'adamw' must differ from the base in exactly one resolved key" in said and "optimizer.lr" in said
    assert not (tmp_path / "runs").exists() and not (tmp_path / "record.json").exists()
