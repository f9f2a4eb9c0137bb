"""Search spaces: the YAML form reads back, and faults are named all at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from baselines.base import about
from baselines.registry import METHODS
from baselines.schema import options_of
from baselines.search import OneOf, Real, Whole, declared, parse_space, plain_dimension
from geta_core.errors import ConfigError


@pytest.mark.parametrize("name", list(METHODS.builtin))
def test_each_method_reads_the_file_beside_it(name: str) -> None:
    method = METHODS.resolve(name)
    space = about(method).search
    assert set(space) <= set(options_of(method))
    owner = next(base for base in method.__mro__ if "SEARCH" in vars(base))
    names = [each for each in METHODS.builtin if METHODS.resolve(each) is owner]
    file = Path(sys.modules[owner.__module__].__file__ or "").with_name(f"{names[0]}.yaml")
    assert declared(str(file), names[0]) == space
    text = yaml.safe_dump({key: plain_dimension(each) for key, each in space.items()})
    faults: list[str] = []
    assert parse_space(yaml.safe_load(text), "", faults, options_of(method)) == space and not faults


def test_dimensions() -> None:
    faults: list[str] = []
    values = {"a": {"low": 1, "high": 2}, "b": {"low": 1, "high": 8, "whole": True}, "c": {"values": [[4, 8], None]}}
    assert parse_space(values, "method.", faults) == {
        "a": Real(1.0, 2.0),
        "b": Whole(1, 8),
        "c": OneOf(((4, 8), None)),
    }
    assert not faults


def test_every_fault_is_named() -> None:
    faults: list[str] = []
    values = {
        "sparsty": {"low": 0, "high": 1},
        "a": 3,
        "b": {"low": 2, "high": 1},
        "c": {"low": 0, "high": 1, "log": True},
        "d": {"low": 0.5, "high": 3, "whole": True},
        "e": {"values": []},
        "f": {"values": [1, 1]},
        "g": {"loww": 1, "high": 2},
        "h": {"low": "x", "high": 2},
    }
    assert parse_space(values, "method.", faults, ["sparsity", *"abcdefgh"]) == {}
    words = ["did you mean 'sparsity'", "method.a must be a mapping", "method.b.low must be below", "above 0 with log"]
    words += [
        "whole ends",
        "method.e.values must be a list",
        "must differ",
        "did you mean 'low'",
        "numbers low and high",
    ]
    assert len(faults) == len(words)
    for word, fault in zip(words, faults, strict=True):
        assert word in fault


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: {low: 2, high: 1}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: a\.low must be below"):
        declared(str(tmp_path / "mine.py"), "mine")
