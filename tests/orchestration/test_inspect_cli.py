"""``geta inspect``: exit codes, JSON, picture and tables, on named models and on a user's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestration.console import table
from sweeps.cli import COMMANDS, main

OWN = """
import torch
from torch import nn

@torch.library.custom_op("{space}::turn", mutates_args=())
def turn(x: torch.Tensor) -> torch.Tensor:
    return 2 * x

turn.register_fake(torch.empty_like)

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d({channels}, 6, 3, padding=1)
        self.head = nn.Linear(6, classes)
    def forward(self, x):
        return self.head(torch.ops.{space}.turn(self.stem(x).relu()){more}.mean((2, 3)))

def build(num_classes: int = 4) -> nn.Module:
    return Net(num_classes)

def inputs():
    return torch.randn(2, {channels}, 8, 8)

def broken():
    raise ValueError("no inputs\\ntoday")
"""
WRONG = """
import sys
import torch
import geta_core as geta
import own
turned = lambda layers: tuple(layer.flip(1) for layer in layers)
geta.register_rule(torch.ops.own.turn.default, labels=lambda ctx, node: turned(ctx.layers(node.args[0])),
                   zeros=lambda ctx, node: turned(ctx.zeros(node.args[0])))
from sweeps.cli import main
sys.exit(main(["inspect", "model=own:build", "--inputs", "own:inputs", "--share", "0.5", *sys.argv[1:]]))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a module of the user's own into an empty current directory; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, more: str = "", channels: int = 3) -> str:
        (tmp_path / f"{name}.py").write_text(OWN.format(space=name, more=more, channels=channels))
        return name

    return write


def test_a_named_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["model=resnet20", "model.width=4", "method.activation_bits=[4,8]", "--groups"]
    assert main(["inspect", *arguments, "--json", "a.json", "--svg", "a.svg"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["sound"] is True and found["proof"]["holds"] is True and found["proof"]["kind"] == "native"
    # Widths 4, 8 and 16: one family per residual stage, one per inner convolution of nine blocks, and the head.
    assert found["totals"]["prunable_groups"] == 4 + 8 + 16 + 3 * (4 + 8 + 16)
    assert found["totals"]["groups"] == found["totals"]["prunable_groups"] + 10
    assert found["totals"]["parameters"] - found["totals"]["prunable_parameters"] == 10
    assert len(found["families"]) == 13
    assert {site["kind"] for site in found["sites"]} == {"weight", "input"}
    ElementTree.parse(tmp_path / "a.svg")
    out = capsys.readouterr().out
    assert "proof holds: " in out and "reaches the model's output" in out
    assert all(f"F{number}" in out for number in range(13)) and f"│ {found['totals']['groups'] - 1} " in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.svg"]


def test_json_alone_goes_to_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model=vit", "model.depth=1", "method.heads=head_dim", "--no-proof", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proof"] == {**found["proof"], "holds": None, "reason": "not asked for"}
    assert any("qkv" in member["name"] for group in found["groups"] for member in group["members"])


def test_a_task_states_inputs_and_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "task=digits", "model=digits_cnn", "--no-proof", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["blocks"][0]["shape"][1:] == [1, 8, 8]


def test_ones_own_model_with_operations_that_have_no_rule(
    own: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = own("unruly", more=".renorm(2, 0, 9.0)")
    code = main(["inspect", f"model={name}:build", "--inputs", f"{name}:inputs", "--json", "a.json"])
    out, err = capsys.readouterr()
    assert code == 1 and not err
    found = json.loads((tmp_path / "a.json").read_text())
    assert [each["name"] for each in found["missing"]] == ["unruly.turn.default", "aten.renorm.default"]
    assert all(each["places"][0]["source"].startswith("unruly.py:17: return self.head") for each in found["missing"])
    for each in found["missing"]:
        assert each["fix"] in out


def test_ones_own_model_reads_the_usual_task(own: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    name = own("grey", channels=1)
    assert main(["inspect", f"model={name}:build"]) == 1
    assert "register_rule(torch.ops.grey.turn.default" in capsys.readouterr().out
    assert main(["inspect", f"model={own('colour')}:build"]) == 2, "digits are grey"
    err = capsys.readouterr().err
    assert "forward fails on the example inputs" in err and err.count("\n") == 1


def test_a_failing_proof_is_exit_code_1(own: Callable[..., str], tmp_path: Path) -> None:
    own("own")
    command = [sys.executable, "-c", WRONG]
    done = subprocess.run([*command, "--json", "a.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "proof FAILS: 3 of 6 groups removed at random; slimmed and zeroed model must agree" in done.stdout
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["sound"] is False and found["proof"]["holds"] is False and found["proof"]["error"] > 1e-6
    assert found["missing"] == []
    # Without the proof the wrong rule is not noticed.
    done = subprocess.run([*command, "--no-proof"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["model=resnet2"], ["unknown model 'resnet2' (did you mean 'resnet20'?)"]),
        (["model=resnet20", "model.widht=3", "method.heads=hed"], ["did you mean 'head'?", "widht"]),
        (["model=resnet20", "--share", "1.5"], ["share must be a number with 0 <= share < 1, but got 1.5"]),
        (["model=resnet20", "method.pin=[layer9]"], ["pin: there is no module or parameter 'layer9'"]),
        (["model=resnet20", "--svg", "none/a.svg", "--json", "none/a.json"], ["--svg must name", "--json must name"]),
        (["model=resnet20", "--inputs", "nowhere:f"], ["no module 'nowhere'"]),
        (
            ["model=resnet20", "--inputs", "trouble:broken"],
            ["--inputs trouble:broken failed: ValueError: no inputs today"],
        ),
    ],
)
def test_bad_input(
    arguments: list[str], messages: list[str], own: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line per fault, each with its message, and nothing else."""
    own("trouble")
    assert main(["inspect", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == len(messages) and all(line.startswith("geta: ") for line in lines) and not out
    assert all(any(message in line for line in lines) for message in messages), err


def test_the_help_names_every_option_and_starts_without_torch() -> None:
    assert "inspect" in COMMANDS
    code = "import sys, sweeps.cli; code = sweeps.cli.main(['inspect', '--help']); print('torch' in sys.modules, code)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False 0"
    options = ("--json", "--svg", "--no-proof", "--groups", "--inputs", "--share", "--seed", "--config", "exit codes")
    assert all(option in out for option in options)


def test_tables_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["inspect", "model=resnet20", "model.width=64", "--no-proof"]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    drawn = [line for line in out.splitlines() if line[:1] in "┏┃│└"]
    assert drawn and max(map(len, drawn)) <= 100
    assert not any("…" in line for line in drawn), "a number was cut"


def test_text_columns_of_plain_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    table("title", ["name", "count", "why"], [["a", "10", "x"], ["b", "2", "longer"]], texts=(2,))
    assert capsys.readouterr().out.splitlines() == [
        "title", "name  count  why", "----  -----  ------", "a        10  x", "b         2  longer",
    ]  # fmt: skip
