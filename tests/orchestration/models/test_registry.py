"""Building by name and by import path; options; every error a user can cause."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from geta_core.errors import ConfigError, GetaError
from orchestration.models import available, build, build_small, example_inputs, find, register
from orchestration.models.inputs import ImageInput

OWN = """
from __future__ import annotations
from torch import nn
if False:
    from nowhere import Unknown

class Net(nn.Linear):
    def __init__(self, num_classes: int, gain: float | None = None, names: list[str] = ()) -> None:
        super().__init__(3, num_classes)
        self.gain, self.names = gain, names

def loose(**options):
    "Takes anything."
    return nn.Linear(options["num_classes"], 1)

def untyped(num_classes, odd: Unknown = 1):
    return nn.Linear(num_classes, odd)

def not_a_module(num_classes: int = 2):
    return [num_classes]

def raises(num_classes: int = 2):
    raise RuntimeError("no\\nluck")

constant = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the current directory, under a name that no other test has imported."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    (tmp_path / f"{name}_needs.py").write_text("import not_installed_anywhere", encoding="utf-8")
    (tmp_path / f"{name}_broken.py").write_text("x = 1\nraise ValueError('bad\\nday')", encoding="utf-8")
    (tmp_path / f"{name}_syntax.py").write_text("def f(:\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def faults(name: str, **options: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build(name, **options)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


def test_entry_states_options_and_input() -> None:
    entry = available()["resnet20"]
    assert entry.input_shape == (3, 32, 32)
    assert [str(option) for option in entry.options.values()] == [
        "num_classes: a whole number >= 1 = 10",
        "in_channels: a whole number >= 1 = 3",
        "width: a whole number >= 1 = 16",
    ]
    assert entry.accepts("width")
    assert not entry.accepts("image_size")
    assert entry.summary
    assert str(available()["resnet18"].options["stem"]) == "stem: one of 'imagenet', 'cifar' = 'imagenet'"
    assert str(available()["mlp"].options["hidden"]) == "hidden: a list, each a whole number >= 1 = (256, 128)"
    assert str(available()["bert"].options["dropout"]) == "dropout: a number >= 0 and < 1 = 0.1"


def test_examples_are_repeatable_and_follow_the_options() -> None:
    for name in available():
        (first,), (second,) = example_inputs(name, small=True), example_inputs(name, small=True)
        assert torch.equal(first, second)
        assert first.shape[0] == 2
    assert example_inputs("resnet18", batch=4, image_size=16, in_channels=1)[0].shape == (4, 1, 16, 16)
    assert example_inputs("vit", image_size=8)[0].shape == (2, 3, 8, 8)
    (ids,) = example_inputs("encoder", vocab_size=3, sequence_length=9)
    assert ids.shape == (2, 9)
    assert int(ids.max()) < 3


def test_values_from_yaml_are_converted() -> None:
    model = build("mlp", hidden=[5, 4], in_channels=2)
    assert model.get_submodule("body.2").weight.shape == (4, 5)
    assert isinstance(build_small("mobilenetv2", width=1, dropout=0), nn.Module)


def test_unknown_model_suggests_the_closest() -> None:
    assert faults("mobilenet2") == (
        "model=mobilenet2 is not a known model (did you mean 'mobilenetv2'?); own code is package.module:function",
    )
    assert "known: bert, bert_layers, deit_tiny, dense" in faults("zzzzzz")[0]


def test_all_faults_of_the_options_at_once() -> None:
    found = faults("mobilenetv2", wdith=2, num_classes="ten", in_channels=True, width=0, dropout=1.0, stem="big")
    assert found == (
        "model.wdith is not an option of 'mobilenetv2' (did you mean 'width'?)",
        "model.num_classes of 'mobilenetv2' must be a whole number >= 1, got 'ten'",
        "model.in_channels of 'mobilenetv2' must be a whole number >= 1, got True",
        "model.width of 'mobilenetv2' must be a number > 0, got 0",
        "model.dropout of 'mobilenetv2' must be a number >= 0 and < 1, got 1.0",
        "model.stem of 'mobilenetv2' must be one of 'imagenet', 'cifar', got 'big'",
    )
    assert find("mobilenetv2").faults({"wdith": 2}) == [found[0]]
    assert find("mobilenetv2").faults({"width": float("nan")})
    assert find("mobilenetv2").faults({"width": float("inf")})
    assert len(faults("resnet18", layers=[2, 0, 2, 2], width=2.0)) == 2
    assert "must be a list" in faults("mlp", hidden=16)[0]
    assert "true or false" in faults("encoder", norm_first=1)[0]


def test_own_factory(own: str) -> None:
    model = build(f"{own}:Net", num_classes=4, gain=2, names=["a"])
    assert type(model).__name__ == "Net"
    assert vars(model)["gain"] == 2.0
    assert type(vars(model)["gain"]) is float
    assert vars(model)["names"] == ["a"]
    assert build(f"{own}:Net", num_classes=4, gain=None).gain is None
    assert isinstance(build(f"{own}:loose", num_classes=4, anything=1), nn.Linear)
    assert isinstance(build(f"{own}:untyped", num_classes=4, odd=2), nn.Linear)
    entry = find(f"{own}:loose")
    assert (entry.summary, entry.input_shape, entry.accepts("image_size")) == ("Takes anything.", None, True)
    with pytest.raises(GetaError, match="does not state what it reads"):
        entry.example_inputs(2, {})


def test_faults_of_an_own_factory(own: str) -> None:
    assert faults(f"{own}:Net", gain="much", names=[1]) == (
        f"model.gain of '{own}:Net' must be a number or null, got 'much'",
        f"model.names of '{own}:Net' must be a list, each a text, got [1]",
        f"model.num_classes of '{own}:Net' is required: a whole number",
    )
    with pytest.raises(GetaError, match=r"must return a torch\.nn\.Module, got list"):
        build(f"{own}:not_a_module")
    with pytest.raises(GetaError, match=rf"could not be built: RuntimeError: no luck \(.*{own}\.py:23\)"):
        build(f"{own}:raises")


def test_faults_of_an_import_path(own: str) -> None:
    assert "has no 'losse' (did you mean 'loose'?)" in faults(f"{own}:losse")[0]
    assert "must be a function or a class, got int" in faults(f"{own}:constant")[0]
    assert f"no module '{own}_missing'" in faults(f"{own}_missing:net")[0]
    assert "needs module 'not_installed_anywhere', which is not installed" in faults(f"{own}_needs:net")[0]
    assert "failed: ValueError: bad day" in faults(f"{own}_broken:net")[0]
    assert "failed: SyntaxError" in faults(f"{own}_syntax:net")[0]
    for path in (":net", f"{own}:", f"{own}:a-b", "a..b:net", "a:b:c"):
        assert "must have the form package.module:function" in faults(path)[0]


def test_a_name_is_registered_once() -> None:
    def factory() -> nn.Module:
        return nn.Identity()

    with pytest.raises(GetaError, match="'resnet20' is registered twice, by orchestration"):
        register("resnet20", summary="another", inputs=ImageInput(8), small={})(factory)
    assert available()["resnet20"].factory is not factory


def test_importing_the_registry_does_not_load_the_families() -> None:
    code = "import sys, orchestration.models as m; assert 'orchestration.models.vit' not in sys.modules; m.available()"
    code += "; assert 'orchestration.models.vit' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=60)
