"""What every method must do, whatever it is: the built-in names of the registry are all that is listed here.

Each goes through the real launcher on the digits, is stopped by a signal in the middle and goes on, and must end with
the same bits as a run that was left alone; its artifact is loaded, and its promises are counted from what was saved.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import geta_core as geta
from baselines.registry import METHODS
from baselines.schema import options_of
from geta_core.errors import ConfigError
from geta_core.quantize.attach import INPUT_QUANTIZER
from orchestration import loop
from orchestration.assemble import assemble
from orchestration.compose import compose
from orchestration.records import STARTED_FROM
from orchestration.result import RunResult
from orchestration.run import run
from orchestration.signals import StoppedError
from orchestration.state import Session
from tests.orchestration.small import differences, outcome

STEPS = 30
GROUPS = 48
"""Of the digits net with 8 channels in its first stage: one for each output channel of its four convolutions."""
QUICK = {"projection_periods": 2, "pruning_periods": 2, "iterations": 20}
"""Settings that let the stages fit so few steps, for the methods that have them."""
NEEDS = {"pat": "torchao", "parq": "torchao"}
EVERY = [pytest.param(name, marks=pytest.mark.needs(NEEDS[name]) if name in NEEDS else ()) for name in METHODS.builtin]
MATCHING = [each for each in EVERY if "match_bops" in options_of(METHODS.resolve(str(each.values[0])))]
pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture
def _one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(name: str, output: Path, *more: str) -> list[str]:
    known = options_of(METHODS.resolve(name))
    own = [f"method.{key}={value}" for key, value in QUICK.items() if key in known]
    shared = ["task=digits", "model=digits_cnn", "model.width=8", "task.batch_size=32", "run.threads=1"]
    place = ["run.device=cpu", "tracker=jsonl", f"run.steps={STEPS}", f"run.output={output}"]
    return [*shared, *place, f"method={name}", *own, *more]


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something that a SIGTERM stops after a step."""
    after_step = loop.after_step

    def then_stop(session: Session, around: loop.Surroundings) -> None:
        after_step(session, around)
        if session.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "after_step", then_stop)
        with pytest.raises(StoppedError):
            action()


@pytest.mark.parametrize("name", EVERY)
def test_interrupted_or_not_the_bits_and_the_promises_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = run(compose(arguments(name, whole)))
    stopped_at(STEPS // 2 + 1, monkeypatch, lambda: run(compose(arguments(name, parts))))
    assert not (parts / "result.json").exists()
    run(compose(arguments(name, parts)))
    assert differences(outcome(whole), outcome(parts)) == []
    keeps_its_promises(name, result)
    accounts_for_what_is_saved(result, whole)


def keeps_its_promises(name: str, result: RunResult) -> None:
    """What the method was asked for is what its result says."""
    asked = {key: option.default for key, option in options_of(METHODS.resolve(name)).items()}
    if "min_kept" in asked and "sparsity" in asked:  # its sparsity counts groups
        assert round(result.group_sparsity * GROUPS) == int(asked["sparsity"] * GROUPS)
    for key, found in (("weight_bits", result.weight_bits), ("activation_bits", result.activation_bits)):
        wanted = asked.get(key)
        if isinstance(wanted, int):
            assert found == wanted, key
        elif isinstance(wanted, tuple) and len(wanted) == 2:
            assert wanted[0] <= found <= wanted[1], key
    assert 0 < result.relative_bops <= 1


def accounts_for_what_is_saved(result: RunResult, place: Path) -> None:
    """The artifact gives back a model that runs, with as many parameters and levels as the accountant says."""
    model = geta.load(place / "artifact")
    assert torch.isfinite(model.eval()(torch.rand(5, 1, 8, 8))).all()
    named = {name: p.detach() for name, p in model.named_parameters() if INPUT_QUANTIZER not in name.split(".")}
    assert result.parameters == sum(parameter.numel() for parameter in named.values())
    assert result.parameters <= result.dense["parameters"]
    for row in result.layers:
        values = named[row["name"]]
        assert row["channels"] == len(values)
        if row["weight_bits"] <= 8:
            most = max(len(channel.unique()) for channel in values.flatten(1))
            assert most <= 2 ** row["weight_bits"], f"{row['name']} lies on the grid of its bits"


@pytest.mark.parametrize("name", ["prune_then_ptq", "prune_then_qat", "quantize_then_prune"])
def test_from_a_dense_model_the_bits_do_not_depend_on_an_interruption(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(compose(arguments("dense", tmp_path / "dense")))
    start, whole, parts = f"model.weights={tmp_path / 'dense'}", tmp_path / "whole", tmp_path / "parts"
    first = list(assemble(compose(arguments(name, whole, start))).prepared.model.state_dict().values())
    given = load_file(tmp_path / "dense" / "weights.safetensors")
    assert all(any(torch.equal(each, tensor) for tensor in first) for each in given.values())
    result = run(compose(arguments(name, whole, start)))
    stopped_at(STEPS // 2 + 1, monkeypatch, lambda: run(compose(arguments(name, parts, start))))
    again = run(compose(arguments(name, parts, start)))
    assert differences(outcome(whole), outcome(parts)) == []
    assert result.environment[STARTED_FROM] == again.environment[STARTED_FROM]
    scratch = run(compose(arguments(name, tmp_path / "scratch")))
    assert scratch.metrics["trained/val/loss"] > result.metrics["trained/val/loss"], "it had half the steps"


@pytest.mark.parametrize("name", MATCHING)
def test_the_bops_asked_for_are_met(name: str, tmp_path: Path) -> None:
    known = options_of(METHODS.resolve(name))
    target = 0.04 if "weight_bits" in known else 0.4
    # Methods whose papers leave layer inputs in floating point cannot get below 2 x 32 bits without this.
    floating = "activation_bits" in known and known["activation_bits"].default is None
    both = ["method.activation_bits=8"] if floating and "sparsity" not in known else []
    result = run(compose(arguments(name, tmp_path / "run", f"method.match_bops={target}", "model.width=16", *both)))
    assert result.relative_bops == pytest.approx(target, rel=0.1)


def test_the_bops_of_another_run_are_met(tmp_path: Path) -> None:
    first = run(compose(arguments("quantize_then_prune", tmp_path / "first", "method.sparsity=0.4")))
    matched = run(compose(arguments("qat_only", tmp_path / "second", f"method.match_bops={tmp_path / 'first'}")))
    assert matched.relative_bops == pytest.approx(first.relative_bops, rel=0.1)
    assert matched.group_sparsity == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dense", "0.1", "method.match_bops cannot be met by dense, which has no knob for it"),
        ("prune_only", "2.0", "method.match_bops must be"),
        ("prune_only", "nowhere", "nowhere, FileNotFoundError"),
    ],
)
def test_what_cannot_be_matched_is_refused(name: str, value: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(compose(arguments(name, tmp_path / "run", f"method.match_bops={value}")))
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_an_unreachable_target_names_the_range(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the range is 0\.\d+ to 0\.25, and the nearest that can be met is 0\.0039"):
        run(compose(arguments("qat_only", tmp_path / "run", "method.match_bops=0.001")))


def test_without_training_the_given_weights_are_compressed(tmp_path: Path) -> None:
    dense = run(compose(arguments("dense", tmp_path / "dense")))
    weights = f"model.weights={tmp_path / 'dense'}"
    result = run(compose(arguments("ptq_only", tmp_path / "ptq", weights, "method.train=false")))
    assert result.steps == 0
    assert result.metrics["trained/val/loss"] == dense.metrics["val/loss"]
    assert result.metrics["test/loss"] == pytest.approx(dense.metrics["test/loss"], rel=0.05)
