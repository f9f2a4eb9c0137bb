"""Names, paths and entry points of methods."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path

import pytest

from baselines.base import about
from baselines.registry import METHODS, Registry, load_object
from baselines.schema import check_value, options_of
from baselines.search import OneOf, Real, edges
from geta_core.errors import ConfigError


@pytest.mark.parametrize("name", METHODS.names())
def test_every_built_in_method_is_a_dataclass_with_the_contract(name: str) -> None:
    method = METHODS.resolve(name)
    assert is_dataclass(method)
    assert all(callable(getattr(method, part)) for part in ("prepare", "optimizer", "finish"))
    text = __import__("sys").modules[method.__module__].__doc__
    assert "arXiv" in text or "doi" in text or "no paper" in text, "each file names its paper"
    assert about(method).paper and about(method).controls, "`geta methods` says what it is"
    assert all(option.doc for option in options_of(method).values()), "`geta methods` says what each key means"


@pytest.mark.parametrize("name", METHODS.names())
def test_every_search_space_fits_its_method(name: str) -> None:
    method = METHODS.resolve(name)
    options, space = options_of(method), about(method).search
    assert space or name == "dense", "a method without hyper-parameters cannot be tuned"
    for key, dimension in space.items():
        faults: list[str] = []
        for value in edges(dimension):
            check_value(value, options[key].annotation, key, faults)
        assert not faults
        if isinstance(dimension, OneOf):
            assert options[key].default in dimension.values, f"{key}: the default is one of what is tried"
        elif options[key].default is not None:
            assert dimension.low <= options[key].default <= dimension.high, f"{key}: the default lies inside"
        assert not isinstance(dimension, Real) or not dimension.log or dimension.low > 0


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
