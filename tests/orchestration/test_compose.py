"""From a command line to a configuration: groups, recipes, own code, and every fault at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.compose import CONF, _quote, compose, load
from orchestration.config import CHOICES, Config
from orchestration.values import parse_value, read_yaml, split_arguments, write_yaml

OWN_MODEL = """
from torch import nn

def build(num_classes: int, width: int = 3) -> nn.Module:
    return nn.Linear(width, num_classes)
"""


def faults_of(*arguments: str) -> list[str]:
    from geta_core.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        compose(arguments)
    return list(caught.value.faults)


def test_the_issue_s_command_line() -> None:
    line = (
        "model=resnet20 task=cifar10 method=geta method.sparsity=0.35 method.weight_bits=[4,8] run.epochs=3 run.seed=0 "
        "run.output=DIR run.device=auto run.resume=auto run.precision=bf16 run.compile=false run.checkpoint_every=50 "
        "run.threads=2 optimizer=adamw optimizer.lr=1e-3 scheduler=step scheduler.warmup=0.1 tracker=jsonl "
        "task.root=data model.weights=w.pt model.width=8 method.warmup=10 method.projection=20 method.joint=0.5"
    )
    config = compose(line.split(" "))
    assert (config.model.name, config.model.weights, dict(config.model.options)) == ("resnet20", "w.pt", {"width": 8})
    assert config.method.options["weight_bits"] == (4, 8) and config.method.options["warmup"] == 10
    assert isinstance(config.method.options["warmup"], int) and config.method.options["joint"] == 0.5
    assert config.optimizer.lr == 1e-3 and config.optimizer.weight_decay == 0.01, "adamw's own default"
    assert config.run.precision == "bf16" and config.run.threads == 2 and config.scheduler.name == "step"


def test_digits_is_what_runs_without_words() -> None:
    config = compose([])
    assert (config.task.name, config.model.name, config.method.name) == ("digits", "digits_cnn", "geta")
    assert config.method.options["activation_bits"] == (4, 8)


def test_a_recipe_lies_under_what_the_user_says() -> None:
    config = compose(["model=vgg7", "task=cifar10"])
    assert config.optimizer.name == "adam" and config.scheduler.milestones == (0.5,) and config.run.epochs == 200
    assert config.method.options["sparsity"] == 0.7
    config = compose(["model=vgg7", "task=cifar10", "method.sparsity=0.2", "optimizer=sgd", "run.epochs=2"])
    assert config.method.options["sparsity"] == 0.2 and config.run.epochs == 2
    assert config.optimizer.name == "sgd" and config.optimizer.lr == 0.1, "the recipe's rate is for its optimizer"
    config = compose(["model=resnet20", "task=cifar10", "method=dense"])
    assert config.method.options == {} and config.run.epochs == 350


def test_every_packaged_file_is_valid(tmp_path: Path) -> None:
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(write_yaml(compose([]).to_dict()))
    recipes = sorted((CONF / "recipe").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        values = read_yaml(recipe)
        assert set(values) <= {"overrides", "methods"}, recipe
        task, _, model = recipe.stem.partition("-")
        for method in ("dense", *values.get("methods", {})):
            arguments = [f"task={task}", f"method={method}", *([f"model={model}"] if model else [])]
            config = compose(arguments)
            assert config.optimizer.lr == values["overrides"]["optimizer.lr"]
    for group in CONF.iterdir():
        if group.is_dir() and group.name not in ("recipe", "model"):
            for file in group.glob("*.yaml"):
                load_with = [f"{group.name}={file.stem}"]
                assert load(resolved, load_with).to_dict()[group.name]["name"] == file.stem


def test_resolved_values_give_the_same_configuration(tmp_path: Path) -> None:
    config = compose(["model=resnet20", "task=cifar10", "method.pin=[conv1]", "run.steps=7", "method.warmup=0"])
    path = tmp_path / "resolved.yaml"
    path.write_text(write_yaml(config.to_dict()))
    again = load(path)
    assert again.to_dict() == config.to_dict() and again.digest() == config.digest()
    assert yaml.safe_load(path.read_text())["method"]["pin"] == ["conv1"]


def test_what_the_task_states_about_the_model_is_left_to_the_task() -> None:
    config = compose(["model=resnet18", "task=cifar10"])
    assert "num_classes" not in config.to_dict()["model"], "the builder's default would hide the task's"
    assert compose(["model=resnet18", "task=cifar10", "model.num_classes=7"]).to_dict()["model"]["num_classes"] == 7


def test_a_resolved_file_with_changes(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(write_yaml(compose([]).to_dict()))
    config = load(path, ["tracker=jsonl", "run.seed=3", "method=dense", "optimizer=adam", "model.width=5"])
    assert (config.tracker.name, config.run.seed, config.method.name) == ("jsonl", 3, "dense")
    assert config.optimizer.lr == 1e-3 and config.model.options["width"] == 5


def test_only_what_decides_the_result_is_in_the_digest() -> None:
    base = compose([])
    for same in ("run.output=x", "run.resume=never", "tracker=jsonl", "run.checkpoint_every=3"):
        assert compose([same]).digest() == base.digest(), same
    for other in ("run.seed=1", "method.sparsity=0.4", "optimizer.lr=0.2", "task.batch_size=32", "run.threads=1"):
        assert compose([other]).digest() != base.digest(), other


def test_own_code_and_own_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(OWN_MODEL)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "gentle.yaml").write_text("name: geta\nsparsity: 0.1\n")
    config = compose(["model=own_nets:build", "model.width=64", "method=gentle"], tmp_path / "conf")
    assert config.model.name == "own_nets:build" and config.model.options == {"width": 64}
    assert config.method.name == "geta" and config.method.options["sparsity"] == 0.1
    assert faults_of("model=own_nets:build", "model.with=64")[0].endswith("(did you mean 'width'?)")
    assert "no 'biuld'" in faults_of("model=own_nets:biuld")[0]


def test_all_faults_are_named_at_once() -> None:
    faults = faults_of(
        "task=digitz", "optimizer=sdg", "trakcer=jsonl", "method.sparsty=0.3", "method.weight_bits=[8,4]",
        "run.epochs=0", "run.sede=1", "scheduler.warmup=-1", "loose", "run=3", "method.pin=[a", "model.width=none",
    )  # fmt: skip
    text = "\n".join(faults)
    for words in (
        "unknown task 'digitz' (did you mean 'digits'?)",
        "unknown optimizer 'sdg' (did you mean 'sgd'?)",
        "unknown group 'trakcer' (did you mean 'tracker'?)",
        "unknown key method.sparsty (did you mean 'method.sparsity'?)",
        "method.weight_bits: the lowest must not exceed the highest, but got (8, 4); did you mean (4, 8)?",
        "run.epochs must be a whole number >= 1, but got 0",
        "unknown key run.sede (did you mean 'run.seed'?)",
        "scheduler.warmup must be",
        "'loose' must have the form key=value",
        "run has keys only",
        "method.pin=[a: the value is not valid YAML",
        "model.width of 'digits_cnn' must be a whole number",
    ):
        assert words in text, f"{words!r} is missing in:\n{text}"
    assert len(faults) == len(set(faults)) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=resnt20"], "did you mean 'resnet20'?"),
        (["method=gta"], "did you mean 'geta'?"),
        (["method.sparsity=1.0"], "0 <= sparsity < 1"),
        (["method.weight_bits=[1,8]"], "must lie in [2, 16]"),
        (["method.weight_bits=[4,6,8]"], "two whole numbers"),
        (["method.weight_bits=four"], "must be a list"),
        (["run.resume=always"], "one of auto, never, must"),
        (["tracker=wandb"], "unknown tracker 'wandb'"),
        (["launcher=slorm"], "unknown launcher 'slorm' (did you mean 'slurm'?)"),
        (["task.validation=5"], "task.validation must be a whole number >= 10"),
    ],
)
def test_one_fault(arguments: list[str], words: str) -> None:
    (fault,) = faults_of(*arguments)
    assert words in fault


def test_a_fault_in_a_file(tmp_path: Path) -> None:
    from geta_core.errors import ConfigError

    path = tmp_path / "bad.yaml"
    for text, words in {
        "- a\n": "must hold a mapping",
        "a: [1\n": "not valid YAML",
        "task: digits\nmodel: digits_cnn\nmethod: {name: geta, sparsity: 2}\nmodle: x\n": "unknown group 'modle'",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match="(?s).*" + words.replace("[", r"\[")):
            load(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path / "absent.yaml")


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8), st.lists, max_leaves=5))
@settings(max_examples=60)
def test_values_survive_hydra_s_grammar(value: Any) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    text = f"++a.b={_quote(value)}"
    if any("${" in part for part in [text]) or "\x00" in text:
        return
    assert OverridesParser.create().parse_override(text).value() == value


def test_numbers_as_people_write_them() -> None:
    faults: list[str] = []
    for text, value in {"1e-4": 1e-4, "-2E+3": -2000.0, ".5e1": 5.0, "4": 4, "[4, 8]": [4, 8], "null": None}.items():
        assert parse_value(text, "key", faults) == value
    assert isinstance(parse_value("1e5", "key", faults), float) and not faults
    assert split_arguments(["a.b=x=y", "a.b=z"], [], faults) == ({}, {"a.b": "z"})


def test_the_groups_are_the_documented_ones() -> None:
    assert CHOICES == ("model", "task", "method")
    assert list(compose([]).to_dict()) == [*CHOICES, "optimizer", "scheduler", "run", "tracker", "launcher"]
    assert Config.from_dict({"model": "digits_cnn", "task": "digits", "method": "dense"}).method.name == "dense"
