"""Names, paths and entry points of methods."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path

import pytest

from baselines.registry import METHODS, Registry, load_object
from geta_core.errors import ConfigError


def test_every_built_in_method_is_a_dataclass_with_the_contract() -> None:
    assert METHODS.names() == ["dense", "geta", "prune_then_ptq", "qat_only"]
    for name in METHODS.names():
        method = METHODS.resolve(name)
        assert is_dataclass(method)
        assert all(callable(getattr(method, part)) for part in ("prepare", "optimizer", "finish"))
        text = __import__("sys").modules[method.__module__].__doc__
        assert "arXiv" in text or "no paper" in text, "each file names its paper"


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'qat_onli' \(did you mean 'qat_only'\?\)"):
        METHODS.resolve("qat_onli")


def test_own_code_is_found_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_thing.py").write_text("class Mine:\n    pass\nvalue = 3\n")
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert METHODS.resolve("own_thing:Mine").__name__ == "Mine"
    for path, words in {
        "own_thing:Mien": r"holds no 'Mien' \(did you mean 'Mine'\?\)",
        "own_thing:value": "must be a class or a function, but is a int",
        "own_absent:Mine": "importing own_absent failed: ModuleNotFoundError",
        "own_broken:Mine": "RuntimeError: two lines",
        "own_thing:": "package.module:name",
    }.items():
        with pytest.raises(ConfigError, match=words) as caught:
            load_object("method", path)
        assert "\n" not in str(caught.value)


def test_entry_points_of_other_packages_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[geta.methods]\nother = baselines.dense:Dense\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("method", {"dense": "baselines.dense:Dense"}, "geta.methods")
    assert registry.names() == ["dense", "other"]
    assert registry.resolve("other") is registry.resolve("dense")
