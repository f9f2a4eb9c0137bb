"""Damaged and hostile artifacts: each is refused with one line, and nothing that they name is run or imported."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import geta_core as geta
from geta_core.artifact.manifest import MANIFEST, TENSORS
from tests.geta_core.artifact.saved import copied, manifest_of, refused, replace_tensors, rewrite, tensors_of
from tests.geta_core.compressing import build

Saved = Callable[[str, str], Path]
Manifest = dict[str, Any]


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A copy that may be altered."""
    return copied(saved("vgg7", "WA"), tmp_path / "artifact")


def call(manifest: Manifest, position: int = 0) -> dict[str, Any]:
    """A node of the graph that calls an operator."""
    return [node for node in manifest["graph"]["nodes"] if "operator" in node][position]


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, str(folder / name), "No such file")


def test_no_directory_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "nothing", "No such file")


@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file(folder: Path, name: str, share: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    refused(folder, str(folder / name))


def test_every_flipped_byte_of_the_tensors_is_seen(folder: Path) -> None:
    data = (folder / TENSORS).read_bytes()
    for position in torch.linspace(0, len(data) - 1, 25).long().tolist():
        (folder / TENSORS).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        refused(folder, "does not have the checksum")


def test_every_flipped_byte_of_the_manifest_is_seen(folder: Path) -> None:
    data = (folder / MANIFEST).read_bytes()
    for position in torch.linspace(0, len(data) - 2, 60).long().tolist():
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        (folder / MANIFEST).write_bytes(changed)
        if _content(changed) != _content(data):
            refused(folder, str(folder / MANIFEST))


def _content(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def edit_bits(manifest: Manifest) -> None:
    next(entry for entry in manifest["tensors"].values() if "bits" in entry)["bits"][0] -= 1


def edit_number(manifest: Manifest) -> None:
    manifest["report"]["relative_bops"] /= 2


def edit_graph(manifest: Manifest) -> None:
    call(manifest)["operator"] = "aten.abs.default"


@pytest.mark.parametrize("edit", [edit_bits, edit_number, edit_graph])
def test_a_quiet_edit_of_the_manifest_is_seen(folder: Path, edit: Callable[[Manifest], None]) -> None:
    rewrite(folder, edit, seal=False)
    refused(folder, "does not have the checksum that it states")


def test_a_manifest_without_a_checksum(folder: Path) -> None:
    rewrite(folder, lambda m: m.pop("manifest_sha256"), seal=False)
    refused(folder, "does not have the checksum")


@pytest.mark.parametrize("value", [0, 1, 3, "2", None, True])
def test_another_format(folder: Path, value: object) -> None:
    rewrite(folder, lambda m: m.update(format=value))
    refused(folder, "must have format 2")


HUGE = {"shape": [100_000, 100_000]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (HUGE, "does not have the size"),
        ({"shape": [3, -1, -1, 3]}, "not stored as whole numbers"),
        ({"shape": [3.0]}, "not stored as whole numbers"),
        ({"bits": [1]}, "not stored as whole numbers"),
        ({"bits": [17]}, "not stored as whole numbers"),
        ({"bits": [4, 4]}, "not stored as whole numbers"),
        ({"bits": []}, "not stored as whole numbers"),
    ],
)
def test_a_packed_weight_with_another_description(folder: Path, change: dict[str, object], words: str) -> None:
    name = next(name for name, entry in manifest_of(folder)["tensors"].items() if "step" in entry)
    rewrite(folder, lambda m: m["tensors"][name].update(change))
    refused(folder, name, words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", '{"format": 1', "[" * 100_000])
def test_no_manifest_in_the_file(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    refused(folder, str(folder / MANIFEST))


@pytest.mark.parametrize("key", ["tensors_sha256", "tensors", "graph"])
@pytest.mark.parametrize("value", [None, 3, "x", []])
def test_a_missing_or_wrong_part_for_the_graph(folder: Path, key: str, value: object) -> None:
    rewrite(folder, lambda m: m.pop(key) if value is None else m.update({key: value}))
    refused(folder)


@pytest.mark.parametrize("key", ["tensors", "kept", "native", "inputs", "changes"])
@pytest.mark.parametrize("value", [None, 3, "x", [3], [{}]])
def test_a_missing_or_wrong_part_for_a_model(folder: Path, key: str, value: object) -> None:
    rewrite(folder, lambda m: m.pop(key) if value is None else m.update({key: value}))
    dense = build("vgg7")
    with pytest.raises(geta.ArtifactError) as caught:
        geta.load(folder, dense)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, build("vgg7").state_dict()[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("key", ["nodes", "arguments", "in_spec", "out_spec"])
@pytest.mark.parametrize("value", [None, 3, "x", [3], [{}], {"tuple": 3}])
def test_a_missing_or_wrong_part_of_the_graph(folder: Path, key: str, value: object) -> None:
    rewrite(folder, lambda m: m["graph"].pop(key) if value is None else m["graph"].update({key: value}))
    refused(folder)


@pytest.mark.parametrize("key", ["op", "name", "args", "kwargs", "operator"])
@pytest.mark.parametrize("value", [None, 3, "x", [{}], [{"node": "nowhere"}], [{"node": 1, "float": 2}]])
def test_a_missing_or_wrong_part_of_a_node(folder: Path, key: str, value: object) -> None:
    rewrite(folder, lambda m: call(m).pop(key) if value is None else call(m).update({key: value}))
    if (key, value) != ("name", "x"):
        refused(folder)


# ---------------------------------------------------------------- tensors of another kind


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_in_place_of_the_tensors(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    replace_tensors(folder, pickle.dumps(Payload(mark)))
    refused(folder, "is not a safetensors file")
    torch.save({"a": Payload(mark)}, tmp_path / "pickle.pt")
    replace_tensors(folder, (tmp_path / "pickle.pt").read_bytes())
    refused(folder, "is not a safetensors file")
    assert not mark.exists()


def test_tensors_of_another_model(saved: Saved, folder: Path) -> None:
    replace_tensors(folder, (saved("fixed", "W") / TENSORS).read_bytes())
    refused(folder, "do not belong together")


def test_a_step_that_does_not_fit_its_weight(folder: Path) -> None:
    file = tensors_of(folder)
    key = next(key for key in file if key.endswith(".step"))
    for step in (torch.ones(70_000, 1, 1, 1, 1), torch.ones((), dtype=torch.int32)):
        replace_tensors(folder, safetensors.torch.save({**file, key: step}))
        refused(folder, "is not stored as whole numbers with a step")
    replace_tensors(folder, safetensors.torch.save({**file, key.removesuffix(".step"): torch.ones(5, 3, 3, 3)}))
    refused(folder, "is not stored as whole numbers with a step")


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/passwd", "a..b", "", "__class__.x", "a.__dict__", "a b", "x()"]
)
def test_a_tensor_with_a_name_that_is_no_name(folder: Path, name: str) -> None:
    file = tensors_of(folder)
    before = sorted(folder.parent.iterdir())
    replace_tensors(folder, safetensors.torch.save({**file, name: torch.ones(2)}))
    rewrite(folder, lambda m: m["tensors"].update({name: {"kind": "buffer", "names": [name]}}))
    refused(folder, "is not a valid tensor name")
    assert sorted(folder.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["forward", "graph", "training", "features.0.forward"])
def test_a_tensor_in_the_place_of_a_method(folder: Path, name: str) -> None:
    file = tensors_of(folder)
    replace_tensors(folder, safetensors.torch.save({**file, name: torch.ones(2)}))
    rewrite(folder, lambda m: m["tensors"].update({name: {"kind": "buffer", "names": [name]}}))
    refused(folder, "already exists")


# ---------------------------------------------------------------- operations

OPERATORS = {
    "os.system.default": "unknown operator",
    "aten.os.system": "unknown operator",
    "builtins.eval.default": "unknown operator",
    "prims.add.default": "unknown operator",
    "aten.from_file.default": "unknown operator",
    "aten.__class__.default": "unknown operator",
    "aten.nothing.default": "unknown operator",
    "aten.relu.nothing": "unknown operator",
    "aten.relu.__call__": "unknown operator",
    "aten.relu": "unknown operator",
    "geta.nothing.default": "unknown operator",
    "": "unknown operator",
}


@pytest.mark.parametrize(("operator", "words"), OPERATORS.items())
def test_an_operator_that_is_none(folder: Path, operator: str, words: str) -> None:
    rewrite(folder, lambda m: call(m).update(operator=operator))
    refused(folder, words, repr(operator))


@pytest.mark.parametrize("function", ["eval", "os.system", "__import__", "attrgetter", ""])
def test_a_function_that_is_none(folder: Path, function: str) -> None:
    rewrite(folder, lambda m: (call(m).update(function=function), call(m).pop("operator")))
    refused(folder, "unknown function")


@pytest.mark.parametrize("mode", ["Module", "Linear", "os", "__class__", ""])
def test_a_mode_that_is_none(folder: Path, mode: str) -> None:
    def change(manifest: Manifest) -> None:
        node = next(node for node in manifest["graph"]["nodes"] if "mode" in node)
        node["mode"] = mode

    rewrite(folder, change)
    refused(folder, "unknown module", repr(mode))


@pytest.mark.parametrize("op", ["call_method", "root", "import", ""])
def test_a_kind_of_node_that_is_none(folder: Path, op: str) -> None:
    rewrite(folder, lambda m: call(m).update(op=op, target="__reduce__"))
    refused(folder, "unknown kind of node")


def test_a_tensor_that_is_not_there(folder: Path) -> None:
    def change(manifest: Manifest) -> None:
        next(node for node in manifest["graph"]["nodes"] if node["op"] == "get_attr")["target"] = "forward.__globals__"

    rewrite(folder, change)
    refused(folder, "the graph reads a tensor 'forward.__globals__' that the artifact does not hold")


# ---------------------------------------------------------------- text that would become code


def injected(place: str, code: str) -> Callable[[Manifest], None]:
    """Put code where a name belongs, in a form that would run were it pasted into a Python function."""

    def change(manifest: Manifest) -> None:
        graph = manifest["graph"]
        (keywords,) = (child["dict"] for child in graph["in_spec"]["tuple"] if "dict" in child)
        if place == "name of a node":
            call(manifest)["name"] = f"x = {code}; y"
        elif place == "name of an argument":
            graph["arguments"][0] = f"x={code}"
        elif place == "target of an input":
            next(node for node in graph["nodes"] if node["op"] == "placeholder")["target"] = f"x = {code}; y"
        elif place == "keyword of an operator":
            call(manifest)["kwargs"]["map"][f"x={code}, y"] = 1
        elif place == "keyword of the model":
            keywords.append([f"x': {code}, 'y", None])
            graph["arguments"].append("z")
        elif place == "word of the language":
            call(manifest)["name"] = "lambda"
        else:
            graph["nodes"][-1]["target"] = f"{code}"

    return change


@pytest.mark.parametrize(
    "place",
    [
        "name of a node",
        "name of an argument",
        "target of an input",
        "keyword of an operator",
        "keyword of the model",
        "word of the language",
        "target of the output",
    ],
)
def test_code_in_the_place_of_a_name(folder: Path, tmp_path: Path, place: str) -> None:
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    rewrite(folder, injected(place, code))
    with pytest.raises(geta.ArtifactError) as caught:
        geta.load(folder)(torch.randn(2, 3, 32, 32), *([1] if place == "keyword of the model" else []))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_module_that_the_nesting_names_is_not_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's own text form of a nesting imports what an "enum" in it names.
    mark = tmp_path / "mark"
    (tmp_path / "geta_hostile.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    enum = {"__enum__": True, "fqn": "geta_hostile:Kind", "name": "A"}
    context = json.dumps([enum])
    schema = {"type": "builtins.dict", "context": context, "children_spec": []}
    for spec in (json.dumps([1, schema]), schema, enum, {"dict": [[enum, None]]}, {"enum": [enum]}):
        rewrite(folder, lambda m, spec=spec: m["graph"].update(out_spec=spec))  # type: ignore[misc]
        refused(folder, "nesting of inputs and outputs")
    assert not mark.exists()
    assert "geta_hostile" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {"module": "", "attribute": "forward", "value": 3},
        {"module": "", "attribute": "training", "value": 0},
        {"module": "", "attribute": "__class__", "value": 3},
        {"module": "features.1", "attribute": "num_features", "value": "4"},
        {"module": "nowhere", "attribute": "x", "value": 3},
        {"module": "features.1", "attribute": "num_features", "value": 3, "more": 1},
    ],
)
def test_an_attribute_that_is_no_size(folder: Path, change: dict[str, Any]) -> None:
    rewrite(folder, lambda m: m.update(changes=[change]))
    dense = build("vgg7")
    before = dict(vars(dense))
    with pytest.raises(geta.ArtifactError) as caught:
        geta.load(folder, dense)
    assert "\n" not in str(caught.value)
    assert vars(dense) == before
    assert dense.state_dict().keys() == build("vgg7").state_dict().keys()


def test_the_untouched_copy_loads(folder: Path) -> None:
    rewrite(folder, lambda m: None)
    assert manifest_of(folder)["native"] is True
    geta.load(folder)
    geta.load(folder, build("vgg7"))
