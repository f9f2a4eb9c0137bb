"""`geta compare`: matching, tuning, failures, the table and the record, on short real runs of digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baselines.base import about
from baselines.registry import METHODS
from baselines.search import OneOf, Real, Whole
from geta_core.errors import ConfigError
from orchestration.compose import compose
from sweeps import tuning
from sweeps.compare import Plan, compare, main
from sweeps.comparison import notes, save_record

SHORT = ("task=digits", "tracker=jsonl", "run.steps=40", "run.threads=1")


def test_the_others_meet_the_bops_of_geta(tmp_path: Path) -> None:
    methods = ["dense", "geta", "ptq_only"]
    plan = Plan(methods=methods, seeds=[0, 1], output=tmp_path, match="bops", values=SHORT)
    found = compare(plan)
    assert not found.failures
    assert {method: list(results) for method, results in found.results.items()} == {name: [0, 1] for name in methods}
    geta = found.results["geta"]
    assert found.targets == {"ptq_only": {seed: result.relative_bops for seed, result in geta.items()}}
    assert not found.missed("ptq_only")
    for seed, result in found.results["ptq_only"].items():
        assert result.relative_bops == pytest.approx(geta[seed].relative_bops, rel=0.1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert compare(plan).results == found.results
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    save_record(found, tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(each["method"], each["seed"]) for each in record["results"]] == [(m, s) for m in methods for s in (0, 1)]
    assert str(tmp_path) not in json.dumps(record)
    assert record["differences"].keys() == {"dense", "ptq_only"}


def test_the_best_trial_on_the_validation_split_is_compared(tmp_path: Path) -> None:
    found = compare(Plan(methods=["dense"], seeds=[0], output=tmp_path, trials=2, values=(*SHORT, "run.epochs=1")))
    trials = [json.loads((tmp_path / f"tuning/dense-{n}/result.json").read_text()) for n in (0, 1)]
    assert {trial["seed"] for trial in trials} == {tuning.SEED}
    best = found.tuned["dense"]
    assert best.result is not None
    assert best.result.metrics["val/accuracy"] == max(trial["metrics"]["val/accuracy"] for trial in trials)
    # Its learning rate is the one of the compared run.
    resolved = next(path for path in tmp_path.glob("*/resolved.yaml")).read_text()
    assert all(key.split("=")[1] in resolved for key in best.keys)


def test_a_target_out_of_reach_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    values = (*SHORT, "ptq_only:method.match_bops=0.9")
    found = compare(Plan(methods=["ptq_only", "dense"], seeds=[0], output=tmp_path, match="bops", values=values))
    assert list(found.results) == ["dense"]
    assert "method.match_bops" in found.failures["ptq_only"]
    assert any(line.startswith("ptq_only: ") for line in notes(found))


def test_the_user_wins_over_what_is_matched(tmp_path: Path) -> None:
    values = (*SHORT, "qat_only:method.weight_bits=6")
    found = compare(Plan(methods=["geta", "qat_only"], seeds=[3], output=tmp_path, values=values))
    assert found.results["qat_only"][3].weight_bits == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["match=bobs"], "match"),
        (["tune=0"], "tune"),
        (["seeds=[1000]", "tune=2"], "seed of tuning"),
        (["methods=[geto]"], "geta"),
        (["seeds=[-1]"], "seeds"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"output={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_trials_are_drawn_from_the_declared_space() -> None:
    for method in METHODS.names():
        base = compose([f"method={method}", "task=digits"])
        space = tuning.space_of(method, base)
        assert space.keys() == {f"method.{key}" for key in about(METHODS.resolve(method)).search} | {tuning.RATE}
        assert tuning.draw(space, 0) == ()
        for number in (1, 2):
            keys = tuning.draw(space, number)
            assert keys == tuning.draw(space, number)
            config = compose([f"method={method}", "task=digits", *keys]).flat()
            for key, dimension in space.items():
                value = config[key]
                if isinstance(dimension, OneOf):
                    assert value in dimension.values
                elif isinstance(dimension, (Real, Whole)):
                    assert dimension.low * 0.999 <= value <= dimension.high * 1.001


def test_without_a_task_of_its_own_nothing_is_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task"):
        compare(Plan(methods=["dense"], seeds=[0], output=tmp_path, values=["task=digitz"]))
    assert not list(tmp_path.iterdir())
