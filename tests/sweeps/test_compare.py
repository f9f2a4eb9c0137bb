"""`geta compare`: matching, tuning, failures, the table and the record, on short real runs of digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from baselines.base import about
from baselines.registry import METHODS
from baselines.search import OneOf, Real, Whole
from geta_core.errors import ConfigError
from orchestration.compose import compose
from orchestration.config import Config
from orchestration.records import STARTED_FROM
from orchestration.result import RunResult
from orchestration.run import run
from sweeps import tuning
from sweeps.cells import different_starts, start_note
from sweeps.compare import Plan, compare, main
from sweeps.comparison import notes, save_record
from sweeps.given import matched

SHORT = ("task=digits", "tracker=jsonl", "run.steps=40", "run.threads=1")
QUICK = "ptq_only:method.iterations=100"


def test_the_others_meet_the_bops_of_geta(tmp_path: Path) -> None:
    methods = ["dense", "geta", "ptq_only"]
    plan = Plan(
        methods=methods, seeds=[0, 1], output=tmp_path, match="bops", values=(*SHORT, QUICK, "geta:method.sparsity=0.3")
    )
    found = compare(plan)
    assert not found.failures
    assert {method: list(results) for method, results in found.results.items()} == {name: [0, 1] for name in methods}
    geta = found.results["geta"]
    assert found.targets == {"ptq_only": {seed: result.relative_bops for seed, result in geta.items()}}
    assert not found.missed("ptq_only")
    for seed, result in found.results["ptq_only"].items():
        assert result.relative_bops == pytest.approx(geta[seed].relative_bops, rel=0.1)
        # It compresses the dense run of its seed, and trains nothing itself.
        assert result.steps == 0
        assert result.metrics["trained/val/loss"] == found.results["dense"][seed].metrics["val/loss"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert compare(plan).results == found.results
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    save_record(found, tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(each["method"], each["seed"]) for each in record["results"]] == [(m, s) for m in methods for s in (0, 1)]
    assert str(tmp_path) not in json.dumps(record)
    assert record["differences"].keys() == {"dense", "ptq_only"}


PIPELINES = ("prune_then_ptq", "prune_then_qat", "quantize_then_prune")


def test_every_method_starts_from_the_one_dense_model_of_its_seed(tmp_path: Path) -> None:
    methods = ["geta", *PIPELINES, "ptq_only", "dense"]
    small = (*SHORT, QUICK, "model.width=8", "task.batch_size=64")
    plan = Plan(methods=methods, seeds=[0], output=tmp_path, match="bops", values=small)
    found = compare(plan)
    assert not found.failures
    for seed, dense in found.results["dense"].items():
        weights = Path(dense.directory) / "weights.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        assert STARTED_FROM not in dense.environment
        for method in methods[:-1]:
            result = found.results[method][seed]
            assert result.environment[STARTED_FROM] == digest
            assert result.steps == (0 if method == "ptq_only" else dense.steps)
    assert different_starts(found.results) == []
    said = (
        "5 methods start from one file of weights for each seed (dense, 40 steps; they count for each alike) and "
        "take 40 of their own; ptq_only none"
    )
    assert said in notes(found)
    # A row that started elsewhere is told.
    geta = found.results["geta"][0]
    other = replace(geta, environment={**geta.environment, STARTED_FROM: "0"})
    mixed = {**found.results, "geta": {0: other}}
    assert different_starts(mixed) == [0] and "DIFFER" in str(start_note(mixed))
    # From scratch nothing is given, and a comparison without dense has nothing to give.
    scratch = compare(replace(plan, methods=["dense", "prune_then_ptq"], seeds=[0], start="scratch"))
    assert STARTED_FROM not in scratch.results["prune_then_ptq"][0].environment and start_note(scratch.results) is None


def test_without_the_dense_run_of_a_seed_the_others_do_not_start_from_scratch(tmp_path: Path) -> None:
    values = (*SHORT, "dense:model.weights=/nowhere.pt")
    found = compare(Plan(methods=["qat_only", "dense"], seeds=[0], output=tmp_path, values=values))
    assert not found.results
    assert "nowhere" in found.failures["dense"]
    assert "the dense run of its seed, which did not come to its end" in found.failures["qat_only"]


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


def test_a_run_that_misses_its_target_is_said_and_not_compared(tmp_path: Path) -> None:
    values = (*SHORT, QUICK, "run.epochs=1", "ptq_only:method.match_bops=0.25")
    found = compare(Plan(methods=["geta", "ptq_only"], seeds=[0], output=tmp_path, match="bops", values=values))
    assert found.missed("ptq_only") == [0]
    assert not found.differences(), "an accuracy at another price is no difference"
    said = next(line for line in notes(found) if line.startswith("ptq_only missed"))
    costs = found.results["ptq_only"][0].relative_bops, found.targets["ptq_only"][0]
    assert costs[0] > 10 * costs[1] and f"{costs[0]:.2%} instead of {costs[1]:.2%} (seed 0)" in said
    save_record(found, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text())["missed"] == {"ptq_only": [0]}


def test_a_trial_that_misses_the_target_never_wins(tmp_path: Path) -> None:
    base = [*SHORT, "method=ptq_only", "method.iterations=100", "run.epochs=1", f"run.output={tmp_path}"]

    def trial(number: int, keys: Sequence[str]) -> RunResult:
        result = run(compose([*base[:-1], f"run.output={tmp_path}/{number}", "method.match_bops=0.0625"]))
        # The same run, once as if it had cost four times as much, with the better accuracy.
        metrics = {**result.metrics, "val/accuracy": 0.9 + 0.1 * number}
        return replace(result, metrics=metrics, relative_bops=result.relative_bops * (1 + 3 * number))

    trials = tuning.tune(2, {tuning.RATE: Real(0.1, 0.2)}, trial, target=0.0625)
    assert [each.met for each in trials] == [True, False]
    assert max(trials, key=lambda each: each.score).number == 0
    assert trials[1].reason == "relative BOPs of 0.25 instead of 0.0625"


def reference(weights: str, inputs: str) -> tuple[Config, RunResult]:
    """GETA's configuration, and a result of it with 4.2 bits in the weights and 6.5 in the inputs."""
    config = compose(["task=digits", f"method.weight_bits={weights}", f"method.activation_bits={inputs}"])
    names = {each.name: None for each in fields(RunResult)}
    found: Any = {**names, "weight_bits": 4.2, "activation_bits": 6.5, "relative_bops": 0.0123}
    return config, RunResult(**found)


def test_others_quantize_what_geta_quantizes_and_begin_at_its_bits() -> None:
    both, weights_alone = reference("[4,8]", "[4,8]"), reference("[4,8]", "null")
    bops = "method.match_bops=0.0123"
    for method in ("qst_b", "clip_q", "parq", "qat_only", "prune_then_qat"):
        inputs = "method.activation_bits"
        assert matched(method, "bops", *both) == [bops, "method.weight_bits=5", f"{inputs}=7"]
        assert matched(method, "bops", *weights_alone) == [bops, "method.weight_bits=5", f"{inputs}=null"]
    # Bounds stay a method's own; what GETA leaves in floating point, it leaves as well.
    for method in ("djpq", "djpq_restrict", "bayesian_bits"):
        assert matched(method, "bops", *both) == [bops]
        assert matched(method, "bops", *weights_alone) == [bops, "method.activation_bits=null"]
    assert matched("annc", "bops", *both) == [bops, "method.activation_bits=7"]
    assert matched("prune_only", "bops", *both) == [bops]
    assert matched("dense", "bops", *both) == []


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
