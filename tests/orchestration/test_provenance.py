"""`geta config` tells the truth about where values come from; `geta repeat` gives the same numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from baselines.registry import METHODS
from baselines.schema import plain
from orchestration.cli_config import described, stated_keys
from orchestration.cli_config import main as show
from orchestration.cli_repeat import compare, surroundings
from orchestration.cli_repeat import main as repeat
from orchestration.compose import CONF, compose, trace, trace_load
from orchestration.config import SETTINGS, choice_options
from orchestration.records import uncommitted
from orchestration.result import RunResult
from orchestration.rundir import PATCH, RunDirectory
from orchestration.values import read_yaml, write_yaml
from sweeps.cli import main as geta

COMMANDS = [
    [],
    ["method=qat_only", "run.seed=3"],
    ["task=cifar10", "model=vgg7", "method.sparsity=0.1", "optimizer.lr=0.5"],
    ["task=cifar10", "model=resnet20", "optimizer=adamw", "tracker=jsonl"],
    ["task=cifar10", "model=resnet20", "scheduler=cosine", "scheduler.final=0.1"],
    ["task=image_folder", "task.root=x", "method=prune_then_ptq"],
]


def default_of(group: str, key: str, name: str) -> Any:
    """Return what the code says when nobody says anything."""
    if (group, key) == ("model", "weights"):
        return None
    if group in SETTINGS:
        return plain(getattr(SETTINGS[group](), key))
    return plain(choice_options(group, name)[key].default)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_each_value_is_what_its_origin_states(arguments: list[str]) -> None:
    composition = trace(arguments)
    assert composition.config == compose(arguments)
    given = dict(argument.split("=", 1) for argument in arguments)
    seen = set()
    for group, section in composition.config.to_dict().items():
        for key, value in section.items():
            origin = composition.origins.get(f"{group}.{key}")
            asked = group if key == "name" else f"{group}.{key}"
            kind, _, place = (origin or "default").partition(" ")
            seen.add(kind)
            if kind == "command":
                assert yaml.safe_load(given[asked]) == value
            elif kind == "recipe":
                recipe = read_yaml(CONF / "recipe" / f"{place}.yaml")
                stated = {**recipe["overrides"], **recipe.get("methods", {}).get(composition.config.method.name, {})}
                assert stated[asked] == value and asked not in given
            elif kind == "file":
                content = read_yaml(Path(place))
                assert content.get(key) == value or {asked: value} in content["defaults"]
                assert asked not in given
            else:
                assert asked not in given and value == default_of(group, key, section.get("name", ""))
    assert {"recipe", "default"} <= seen and ("command" in seen) == bool(arguments)


def test_own_group_files_and_resolved_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "method").mkdir()
    own = tmp_path / "method" / "gentle.yaml"
    own.write_text("name: geta\nsparsity: 0.1\n")
    found = trace(["method=gentle"], tmp_path).origins
    assert found["method.sparsity"] == f"file {own}" and found["method.name"] == "command line"
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(write_yaml(compose([]).to_dict()))
    composition = trace_load(resolved, ["optimizer=adam", "run.seed=4"])
    assert composition.origins["run.epochs"] == f"file {resolved}"
    assert composition.origins["run.seed"] == composition.origins["optimizer.name"] == "command line"
    assert "optimizer.momentum" not in composition.origins, "another optimizer has its own defaults"


def test_what_is_shown_is_yaml_that_gives_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["task=cifar10", "model=vgg7", "method.pin=[a.b, 'c: d']", "tracker.experiment='no'", "run.seed=7"]
    assert show(arguments) == 0
    text = capsys.readouterr().out
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    assert trace_load(path).config.to_dict() == compose(arguments).to_dict()
    assert re.search(r"^  seed: 7 +# command line$", text, re.M)
    assert re.search(r"^  sparsity: 0.7 +# recipe cifar10-vgg7$", text, re.M)
    assert re.search(r"^  # num_classes: \? +# stated by the task$", text, re.M)
    owner = METHODS.resolve("geta")
    assert re.search(rf"^  eta: .* # default of {re.escape(owner.__module__)}\.", text, re.M)
    assert show(["--config", str(path), "run.seed=8"]) == 0
    assert "seed: 8" in capsys.readouterr().out
    assert show(["method.sparsity=2"]) == 2 and geta(["config", "--config", str(tmp_path / "absent")]) == 2


def test_the_task_states_classes_and_channels(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(["--data"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  # num_classes: 10 +# stated by the task$", text, re.M)
    composition = trace(["model.num_classes=12"])
    assert "num_classes" not in stated_keys(composition.config)
    assert any(re.search(r"num_classes: 12 +# command line", line) for line in described(composition))


def test_a_repetition_gives_the_same_numbers(
    finished: RunResult, finished_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((finished_directory / "environment.json").read_text())
    program, command, place = record["repeat"].split(" ")
    assert (program, command, place) == ("geta", "repeat", str(finished_directory))
    copy = tmp_path / "run"
    shutil.copytree(finished_directory, copy)
    assert geta(["repeat", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "the same numbers as" in out and str(tmp_path / "run-repeat") in out
    again = RunResult.load(tmp_path / "run-repeat" / "result.json")
    assert list(compare(finished, again)) == [] and again.directory != finished.directory
    assert (tmp_path / "run-repeat" / "artifact" / "model.safetensors").read_bytes() == (
        finished_directory / "artifact" / "model.safetensors"
    ).read_bytes()
    # A number that is not the same is named, and the exit code says so.
    altered = json.loads((copy / "result.json").read_text())
    altered["metrics"]["test/accuracy"] += 1e-16 + 1e-9
    altered["layers"] = []
    (copy / "result.json").write_text(json.dumps(altered))
    output = f"run.output={tmp_path / 'run-repeat'}"
    assert repeat([str(copy), output]) == 1
    error = capsys.readouterr().err
    assert "other numbers than" in error and "test/accuracy" in error and "layers differ" in error
    # With another value there is nothing to compare.
    assert repeat([str(copy), "run.steps=20", f"run.output={tmp_path / 'short'}"]) == 0
    assert "changed: run.steps: 40 -> 20" in capsys.readouterr().out
    (copy / "result.json").unlink()
    assert repeat([str(copy), output]) == 0
    assert "no result to compare with" in capsys.readouterr().out


def test_repeat_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat([str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_what_differs_around_a_run_is_said(finished_directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_directory, copy)
    record = json.loads((copy / "environment.json").read_text())
    record["attempts"][-1]["versions"]["torch"] = "1.0"
    record["attempts"][-1]["code"] = {"commit": "0" * 40, "modified": True}
    (copy / "environment.json").write_text(json.dumps(record))
    said = "\n".join(surroundings(RunDirectory(copy), compose([])))
    assert "torch was 1.0" in said and "0" * 40 in said and "the code was modified since its commit" in said


def test_the_patch_of_modified_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.rundir.uncommitted", lambda: "diff\n")
    place = RunDirectory(tmp_path / "run")
    place.create(compose([]), {})
    assert (place.path / PATCH).read_text() == "diff\n"
    monkeypatch.setattr("orchestration.rundir.uncommitted", lambda: "")
    other = RunDirectory(tmp_path / "other")
    other.create(compose([]), {})
    assert not (other.path / PATCH).exists()
    monkeypatch.setattr("orchestration.records._git", lambda folder, *arguments: "x" * 2_000_000)
    assert uncommitted() == "", "too long to keep"
