"""One whole run: what it promises, what it leaves, and how it goes on after a stop."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import geta_core as geta
from geta_core.errors import ArtifactError, ConfigError, GetaError
from orchestration import loop
from orchestration.assemble import assemble, settle_statistics_
from orchestration.compose import compose
from orchestration.device import choose_compute
from orchestration.result import RunResult
from orchestration.run import run
from orchestration.rundir import PATCH
from orchestration.signals import StoppedError, StopRequest, stop_requests
from orchestration.state import Session
from orchestration.tasks.digits import Digits
from orchestration.tracking.intent import receipt
from tests.orchestration.small import STEPS, differences, outcome, small

W_AND_A = "method.activation_bits=[4,8]"


def test_what_a_run_leaves(finished: RunResult, finished_directory: Path) -> None:
    names = {path.name for path in finished_directory.iterdir()}
    assert names - {PATCH} == {
        ".lock", "artifact", "checkpoints", "environment.json", "metrics.jsonl", "pictures", "resolved.yaml",
        "result.json",
    }  # fmt: skip
    pictures = {path.name for path in (finished_directory / "pictures").iterdir()}
    assert pictures == {"bits_per_layer.png", "channels_per_layer.png", "training.png"}
    resolved = yaml.safe_load((finished_directory / "resolved.yaml").read_text())
    assert resolved["method"]["sparsity"] == 0.5 and resolved["model"]["width"] == 6
    (attempt,) = json.loads((finished_directory / "environment.json").read_text())["attempts"]
    assert {"torch", "numpy"} <= set(attempt["versions"]) and attempt["command"] and attempt["device"] == "cpu"
    assert RunResult.load(finished_directory / "result.json") == finished


def test_the_numbers_are_those_of_the_artifact(finished: RunResult, finished_directory: Path) -> None:
    model = geta.load(finished_directory / "artifact")
    task = Digits()
    config = compose(small(finished_directory, W_AND_A))
    task.setup(0, choose_compute(config.run).placement)
    for split in ("val", "test"):
        assert task.evaluate(model, split)["accuracy"] == finished.metrics[f"{split}/accuracy"]
    assert finished.metrics["val/accuracy"] == pytest.approx(finished.metrics["trained/val/accuracy"], abs=0.02)
    assert finished.group_sparsity == pytest.approx(0.5, abs=0.03)
    assert 4 <= finished.weight_bits <= 8 and 4 <= finished.activation_bits <= 8
    assert 0 < finished.relative_bops < 0.03 and finished.bytes < finished.dense["bytes"] / 4
    assert finished.parameters < finished.dense["parameters"] and finished.macs < finished.dense["macs"]
    assert finished.max_error64 <= 1e-10 and finished.latency_ms > 0
    assert len(finished.layers) == 5
    for row in finished.layers:
        assert 0 < row["channels"] <= row["dense_channels"] and 4 <= row["weight_bits"] <= 8
    assert finished.layers[-1]["channels"] == 10, "classes are never pruned"


def test_every_stage_and_epoch_has_its_numbers(finished_directory: Path) -> None:
    lines = [json.loads(line) for line in (finished_directory / "metrics.jsonl").read_text().splitlines()]
    stages = [(line["stage"], line["step"]) for line in lines if line["kind"] == "stage"]
    assert [name for name, _ in stages] == ["warmup", "projection", "joint", "cooldown"]
    assert [step for _, step in stages] == [4, 12, 24, STEPS]
    keys = {
        "train/loss", "train/accuracy", "val/loss", "val/accuracy", "group_sparsity", "weight_bits", "activation_bits",
        "relative_bops", "lr", "lr_quant",
    }  # fmt: skip
    for line in lines:
        if line["kind"] == "stage":
            assert {key.removeprefix("stage/") for key in line["metrics"]} == keys
        if line["kind"] == "epoch":
            assert set(line["metrics"]) == keys and set(line["seconds"]) == {"seconds", "evaluation_seconds"}
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [39, STEPS]
    assert lines[-1]["kind"] == "final" and "final/test/accuracy" in lines[-1]["metrics"]
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    last = [line for line in lines if line["kind"] == "epoch"][-1]["metrics"]
    assert last["group_sparsity"] == lines[-1]["metrics"]["final/group_sparsity"]


def test_the_same_command_again_returns_the_result(finished: RunResult, finished_directory: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_directory.rglob("*")}
    assert run(compose(small(finished_directory, W_AND_A))) == finished
    assert {path: path.stat().st_mtime_ns for path in finished_directory.rglob("*")} == before


def test_it_is_refused_with_another_configuration(finished_directory: Path) -> None:
    config = compose(small(finished_directory, W_AND_A, "optimizer.lr=0.05", "method.sparsity=0.25"))
    with pytest.raises(ConfigError) as caught:
        run(config)
    assert "method.sparsity: 0.5 -> 0.25; optimizer.lr: 0.1 -> 0.05" in str(caught.value)
    with pytest.raises(ConfigError, match=r"run\.resume=never needs a new run.output"):
        run(compose(small(finished_directory, W_AND_A, "run.resume=never")))


class StopError(Exception):
    """Ends a run in the middle."""


@pytest.mark.parametrize("at", [1, 7, 12, 19, 39])
def test_a_stopped_run_goes_on_with_the_same_bits(
    finished_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    arguments = small(tmp_path / "run", W_AND_A)
    original = loop.after_step

    def stop_after(session: Session, around: loop.Surroundings) -> None:
        original(session, around)
        if session.step == at:
            raise StopError

    monkeypatch.setattr(loop, "after_step", stop_after)
    with pytest.raises(StopError):
        run(compose(arguments))
    monkeypatch.setattr(loop, "after_step", original)
    run(compose(arguments))
    assert differences(outcome(finished_directory), outcome(tmp_path / "run")) == []
    attempts = json.loads((tmp_path / "run" / "environment.json").read_text())["attempts"]
    assert len(attempts) == 2


def test_a_request_to_stop_saves_the_state_first(finished_directory: Path, tmp_path: Path, monkeypatch: Any) -> None:
    arguments = small(tmp_path / "run", W_AND_A)
    original = loop.after_step

    def signal_after(session: Session, around: loop.Surroundings) -> None:
        original(session, around)
        if session.step == 17:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop, "after_step", signal_after)
    with pytest.raises(StoppedError, match="stopped after step 17; the same command goes on") as caught:
        run(compose(arguments))
    assert caught.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(loop, "after_step", original)
    run(compose([*arguments, "run.resume=must"]))
    assert differences(outcome(finished_directory), outcome(tmp_path / "run")) == []


def test_a_second_interrupt_does_not_wait() -> None:
    with stop_requests() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not StopRequest()


def partial_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Leave a run with checkpoints before step ``at``."""
    arguments = small(tmp_path / "run")
    original = loop.after_step

    def stop_after(session: Session, around: loop.Surroundings) -> None:
        original(session, around)
        if session.step == at:
            raise StopError

    monkeypatch.setattr(loop, "after_step", stop_after)
    with pytest.raises(StopError):
        run(compose(arguments))
    monkeypatch.setattr(loop, "after_step", original)
    return arguments


def test_a_damaged_checkpoint_is_passed_over_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = partial_run(tmp_path, monkeypatch, 16)
    states = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert [path.name for path in states] == ["step-000000007.pt", "step-000000014.pt"]
    states[1].write_bytes(states[1].read_bytes()[:-1])
    capsys.readouterr()
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "run", whole)
    result = run(compose(arguments))
    told = capsys.readouterr().err
    assert "ignored: step-000000014.pt is truncated" in told and "goes on after step 7" in told
    assert result.steps == STEPS
    for path in (whole / "checkpoints").glob("*.pt"):
        path.write_bytes(b"altered" + path.read_bytes()[7:])
    with pytest.raises(ArtifactError, match="no usable checkpoint"):
        run(compose(small(whole)))


def test_resume_must_and_foreign_directories(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.resume=must needs a checkpoint"):
        run(compose(small(tmp_path / "new", "run.resume=must")))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        run(compose(small(tmp_path / "other")))


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    from orchestration.rundir import RunDirectory

    place = RunDirectory(tmp_path / "run")
    with place.lock(), pytest.raises(GetaError, match="another process is running in"):
        run(compose(small(tmp_path / "run")))


class Bursting(Digits):
    """Digits whose loss becomes NaN in one step."""

    def loss(self, model: nn.Module, batch: Any) -> Any:
        self.seen = getattr(self, "seen", 0) + 1
        value, metrics = super().loss(model, batch)
        return (value * float("nan") if self.seen == 18 else value), metrics


def test_nan_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestration.cli_run import main

    path = tmp_path / "run.yaml"
    config = compose(small(tmp_path / "run", "tracker=mlflow"))
    from orchestration.values import write_yaml

    path.write_text(write_yaml({**config.to_dict(), "task": {"name": f"{__name__}:Bursting", "batch_size": 32}}))
    assert main(["--config", str(path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the loss must stay finite, but did not at step 17 (epoch 0, stage joint)" in error
    assert "the last good checkpoint is" in error and "step-000000014.pt" in error and "optimizer.lr" in error
    assert sorted(each.name for each in (tmp_path / "run" / "checkpoints").glob("*.pt"))[-1] == "step-000000014.pt"
    assert not (tmp_path / "run" / "result.json").exists()
    from mlflow.tracking import MlflowClient

    state = receipt(tmp_path / "run")
    assert MlflowClient(state["store"]).get_run(state["run_id"]).info.status == "FAILED"


def test_mlflow_sees_the_whole_run(tmp_path: Path) -> None:
    result = run(compose(small(tmp_path / "run", "tracker=mlflow", "run.steps=24")))
    from mlflow.tracking import MlflowClient

    state = receipt(tmp_path / "run")
    assert state["store"] == f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(state["store"])
    info = client.get_run(state["run_id"])
    assert info.info.status == "FINISHED" and info.data.params["method.sparsity"] == "0.5"
    assert info.data.metrics["final/test/accuracy"] == result.accuracy
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for key in ("train/loss", "val/accuracy", "group_sparsity", "weight_bits", "relative_bops", "lr", "lr_quant"):
        sent = [(each.step, each.timestamp, each.value) for each in client.get_metric_history(state["run_id"], key)]
        written = [(line["step"], line["time"], line["metrics"][key]) for line in lines if line["kind"] == "epoch"]
        assert sent == written, key
    names = {each.path for each in client.list_artifacts(state["run_id"])}
    assert {"artifact", "pictures", "resolved.yaml", "environment.json", "metrics.jsonl", "result.json"} == names
    shown = {each.path for each in client.list_artifacts(state["run_id"], "pictures")}
    assert shown == {f"pictures/{name}.png" for name in ("training", "bits_per_layer", "channels_per_layer")}


def test_a_dead_tracker_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = run(compose(small(tmp_path / "run", "tracker=mlflow", "tracker.uri=http://127.0.0.1:9", "run.steps=24")))
    assert result.steps == 24 and (tmp_path / "run" / "result.json").exists()


def test_a_dense_run_gives_weights_that_others_start_from(tmp_path: Path) -> None:
    dense = run(compose(small(tmp_path / "dense", "method=dense")))
    assert dense.relative_bops == 1 and dense.group_sparsity == 0 and dense.native
    session = assemble(compose(small(tmp_path / "next", f"model.weights={dense.directory}")))
    loaded = {key: value for key, value in session.prepared.model.state_dict().items() if "running" in key}
    state = torch.load(sorted(Path(dense.directory, "checkpoints").glob("*.pt"))[-1], weights_only=True)
    assert loaded and all(torch.equal(value, state["model"][key]) for key, value in loaded.items())
    pt = tmp_path / "weights.pt"
    torch.save(state["model"], pt)
    assert assemble(compose(small(tmp_path / "next", f"model.weights={pt}", "method=dense")))
    for path, words in {
        str(tmp_path / "absent.pt"): "does not exist",
        str(Path(dense.directory, "result.json")): "cannot be read as tensors alone",
    }.items():
        with pytest.raises(GetaError, match=words):
            assemble(compose(small(tmp_path / "next", f"model.weights={path}")))
    with pytest.raises(ConfigError, match="does not fit the model"):
        assemble(compose(small(tmp_path / "next", f"model.weights={pt}", "model.width=7")))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision(tmp_path: Path, precision: str) -> None:
    result = run(
        compose(small(tmp_path / "run", f"run.precision={precision}", "run.steps=24", "run.channels_last=true"))
    )
    assert result.steps == 24 and result.precision == precision
    assert result.group_sparsity == pytest.approx(0.5, abs=0.03)


def test_an_own_method_and_task(tmp_path: Path) -> None:
    config = compose(small(tmp_path / "run", "run.steps=24"))
    tree = config.to_dict()
    tree["task"] = {"name": f"{__name__}:Plain"}
    result = run(type(config).from_dict(tree))
    assert result.metrics["test/accuracy"] == 1.0 and result.task.endswith(":Plain")


class Plain:
    """The smallest task: it gives a bare loss, and knows nothing of channels or seeds."""

    def setup(self, seed: int, placement: Any) -> None:
        self.images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    def model_options(self) -> dict[str, Any]:
        return {"num_classes": 3, "something": "else"}

    def steps_per_epoch(self) -> int:
        return 5

    def example_inputs(self) -> Any:
        return (self.images[:2],)

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        yield from [self.images] * (5 - start_step)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return model(batch).square().mean()

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return {"accuracy": 1.0}

    def calibration_batches(self, count: int) -> list[Any]:
        return [(self.images,)] * count


def test_fresh_statistics_are_those_of_the_batches() -> None:
    norm = nn.BatchNorm2d(3)
    batches = [torch.randn(8, 3, 4, 4) * 5 + 2 for _ in range(4)]
    settle_statistics_(norm.train(), batches)
    together = torch.stack([batch.transpose(0, 1).flatten(1).mean(1) for batch in batches]).mean(0)
    assert torch.allclose(norm.running_mean, together, atol=1e-6)  # type: ignore[arg-type]
    assert norm.momentum == 0.1


def test_the_device_must_exist() -> None:
    for device, words in {
        "cuda:99": "is not on this machine",
        "tpu": "must be auto, cpu, cuda",
        "meta": "must be auto",
    }.items():
        with pytest.raises(ConfigError, match=words):
            choose_compute(compose([f"run.device={device}"]).run)
