"""Bad input: one line per fault, exit code 2, and nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.cli_measure import main as measure
from orchestration.cli_run import main
from orchestration.compose import compose
from orchestration.values import write_yaml
from sweeps.cli import main as geta
from tests.orchestration.small import everything_under, small
from tests.orchestration.test_tasks import write_cifar10

OWN = """
import torch
from torch import nn

class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 10)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.layer(self.norm(x)).reshape(3, 7)

def picky():
    return Picky()

def empty():
    return nn.Identity()

def broken():
    raise RuntimeError("no such\\nlayer")

def text():
    return "not a module"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; own code and data lie beside it."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("GETA_DATA", raising=False)
    (tmp_path / "bad_nets.py").write_text(OWN)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "list.yaml").write_text("- task\n- model\n")
    (tmp_path / "broken.yaml").write_text("task: {name: digits\nmodel:")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))
    resolved = compose([]).to_dict()
    (tmp_path / "strange.yaml").write_text(write_yaml({**resolved, "metod": resolved["method"]}))
    write_cifar10(tmp_path / "whole")
    (write_cifar10(tmp_path / "half") / "data_batch_4").unlink()
    return place


CASES: list[tuple[list[str], str]] = [
    (["model=resnt20", "task=cifar10"], "unknown model 'resnt20' (did you mean 'resnet20'?)"),
    (["task=digit"], "unknown task 'digit' (did you mean 'digits'?)"),
    (["method=qat"], "unknown method 'qat'"),
    (["method.sparsityy=0.3"], "unknown key method.sparsityy (did you mean 'method.sparsity'?)"),
    (["method.sparsity=1.0"], "method.sparsity must be a number with 0 <= sparsity < 1, but got 1.0"),
    (["method.sparsity=-0.1"], "method.sparsity must be a number with 0 <= sparsity < 1, but got -0.1"),
    (["method.weight_bits=[8,4]"], "method.weight_bits: the lowest must not exceed the highest, but got (8, 4)"),
    (["method.weight_bits=[1,4]"], "method.weight_bits must lie in [2, 16], but got (1, 4)"),
    (["method.activation_bits=[4,6,8]"], "method.activation_bits must be two whole numbers"),
    (["method.warmup=300", "run.steps=40"], "method's stages must fit the run's 40 steps"),
    (["method.warmup=0.5", "method.projection=0.4", "method.joint=0.3"], "must not exceed 1, but sum to 1.2"),
    (["method.joint=2", "method.pruning_periods=5"], "method.pruning_periods must not exceed method.joint"),
    (["scheduler.warmup=50", "run.steps=40"], "scheduler.warmup must not exceed the run's 40 steps, but got 50"),
    (["model=bad_nets:picky", "model.width=3"], "model.width is not an option of 'bad_nets:picky'"),
    (["model=bad_nets:picky"], "the model's forward fails on"),
    (["model=bad_nets:empty"], "must have parameters that can be trained"),
    (["model=bad_nets:broken"], "could not be built: RuntimeError: no such layer"),
    (["model=bad_nets:text"], "must return a torch.nn.Module, got str"),
    (["model.weights=nowhere.pt"], "model.weights must be a file or the directory of a dense run"),
    (["task=cifar10", "model=resnet20"], "task=cifar10 needs its data: give task.root=FOLDER or set GETA_DATA"),
    (["task=cifar10", "model=resnet20", "task.root=../nowhere"], "task.root must be a folder, but ../nowhere does not"),
    (["task=cifar10", "model=resnet20", "task.root=../half"], "is incomplete: data_batch_4 missing"),
    (["task=image_folder", "task.root=../whole"], "train does not exist"),
    (["run.output=../file/run"], "cannot be a directory: "),
    (["run.output=/proc/geta/run"], "cannot be written: "),
    (["run.device=cuda:7"], "run.device=cuda:7 is not on this machine"),
    (["run.resume=must"], "run.resume=must needs a checkpoint"),
    (["run.seed=-1"], "run.seed must be a whole number >= 0, but got -1"),
    (["run.epochs=many"], "run.epochs must be a whole number, but got 'many'"),
    (["run.epochs=2.5"], "run.epochs must be a whole number, but got 2.5"),
    (["run.seed="], "run.seed must be a whole number, but got null"),
    (["run.precision=fp8"], "run.precision must be one of float32, bf16, fp16"),
    (["run.compile=maybe"], "run.compile must be true or false, but got 'maybe'"),
    (["optimizer.lr=nan"], "optimizer.lr must be a number > 0, but got 'nan'"),
    (["optimizer.betas=[0.9]", "optimizer=adam"], "optimizer.betas must be a list of 2"),
    (["optimizer=sdg"], "unknown optimizer 'sdg' (did you mean 'sgd'?)"),
    (["scheduler.milestones=0.5"], "scheduler.milestones must be a list"),
    (["trakcer=jsonl"], "unknown group 'trakcer' (did you mean 'tracker'?)"),
    (["run=fast"], "run has keys only, such as run.epochs=3"),
    (["method="], "method= must name one of its options"),
    (["method.pin=[a, b"], "method.pin=[a, b: the value is not valid YAML"),
    (["method.sparsity=[0.5]"], "method.sparsity must be a number, but got [0.5]"),
    (["model=absent_package.nets:build"], "absent_package"),
    (["model=bad_nets:nothing"], "has no 'nothing'"),
    (["--config-dir", "../nowhere"], "--config-dir must be a folder, but '../nowhere' is none"),
    (["--config", "nowhere.yaml"], "cannot read the configuration nowhere.yaml: No such file"),
    (["--config", "../list.yaml"], "must hold a mapping of groups, but holds list"),
    (["--config", "../broken.yaml"], "is not valid YAML"),
    (["--config", "../binary.yaml"], "is not valid YAML"),
    (["--config", "../strange.yaml"], "unknown group 'metod' (did you mean 'method'?)"),
    (["tracker.uri=http://me:secret@host"], "tracker.uri must not hold a password"),
    (["tracker.uri=mlruns"], "tracker.uri must be http://HOST:PORT of a server"),
    (["tracker.experiment=''"], "tracker.experiment must not be empty"),
    (['tracker.cell="it\'s"'], "tracker.cell must be a name without quotes"),
    (["launcher.workers=2"], "launcher.workers=2 needs launcher=ray"),
    (["nonsense"], "'nonsense' must have the form key=value"),
    (["=3"], "'=3' must have the form key=value"),
]
REAL = [
    ["task=digit"],
    ["method.sparsity=1.0"],
    ["--config", "../broken.yaml"],
    ["run.output=../file/run"],
    ["nonsense"],
]
"""Command lines that are also given to a process of their own."""


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_one_line_code_2_and_nothing_left(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    before = everything_under(folder.parent)
    assert geta(["run", *arguments, "run.threads=1"]) == 2
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("geta: ") and words in line
    assert captured.out == "" and "secret" not in line
    after = {name for name in everything_under(folder.parent) if "__pycache__" not in name}
    assert after == before, "nothing is left behind"


def test_there_are_forty_of_them() -> None:
    assert len({tuple(arguments) for arguments, _ in CASES}) >= 40
    assert all(arguments in [case for case, _ in CASES] for arguments in REAL)


@pytest.mark.parametrize("arguments", REAL, ids=" ".join)
def test_in_a_process_of_its_own(folder: Path, arguments: list[str]) -> None:
    words = next(words for case, words in CASES if case == arguments)
    before = everything_under(folder.parent)
    command = [sys.executable, "-m", "sweeps.cli", "run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("geta: ") and words in line
    assert everything_under(folder.parent) == before


def test_several_faults_have_a_line_each(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["model=digits_cn", "method.weight_bits=[8,4]", "run.epochs=-1"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 3
    assert not everything_under(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda artifact: (artifact / "model.safetensors").write_bytes(b"x"), "truncated or altered"),
        (lambda artifact: (artifact / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda artifact: (artifact / "manifest.json").unlink(), "cannot read"),
    ],
)
def test_an_altered_artifact(
    finished_directory: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    words: str,
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_directory, copy)
    assert measure([str(copy)]) == 0
    assert "group sparsity" in capfd.readouterr().out
    damage(copy / "artifact")
    assert measure([str(copy)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("geta: ") and words in line


def test_an_altered_result(finished_directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_directory, copy)
    (copy / "result.json").write_text("{}")
    assert main(small(copy, "method.activation_bits=[4,8]")) == 2
    assert "result.json is no result of a run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--bogus"], "unrecognized arguments: --bogus; `geta run --help` shows what there is"),
        (["--bogus"], "unrecognized arguments: --bogus; `geta --help` shows"),
        (["config", "--bogus"], "unrecognized arguments: --bogus; `geta config --help` shows"),
        (["ui", "--port", "x"], "argument --port: must be a whole number in 1 .. 65535, but got x"),
        (["ui", "--port", "70000"], "argument --port: must be a whole number in 1 .. 65535, but got 70000"),
        (["ui", "nowhere"], "mlflow.db does not exist"),
        (["sync", "nowhere"], "nowhere holds no run that is copied to MLflow"),
        (["services", "sideways"], "argument action: invalid choice: 'sideways'"),
        (["repeat"], "the following arguments are required: directory"),
        (["repeat", "nowhere"], "nowhere is no run directory: it holds no resolved.yaml"),
        (["measure", "nowhere"], "cannot read nowhere"),
        (["status", "nowhere"], "nowhere does not exist"),
        (["logs", "nowhere"], "nowhere does not exist"),
        (["cancel", "nowhere"], "nowhere does not exist"),
        (["inspect", "nothing"], "'nothing' must have the form key=value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_commands_say_it_in_one_line_too(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    before = everything_under(folder.parent)
    try:
        code: int | str | None = geta(arguments)
    except SystemExit as left:  # as the parser of a command line does
        code = left.code
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert code == 2 and line.startswith("geta: ") and words in line and captured.out == ""
    assert everything_under(folder.parent) == before


def test_an_unknown_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert geta(["compar"]) == 2
    assert capfd.readouterr().err == "geta: unknown command 'compar' (did you mean 'compare'?)\n"
