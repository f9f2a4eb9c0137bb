"""Plain values against type hints: conversion, every fault at once, words that help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.schema import REQUIRED, Bounds, check_options, check_value, describe, options_of, plain, takes_any


@dataclass(kw_only=True)
class Parent:
    """A parent."""

    count: Annotated[int, Bounds(1)] = 3
    """How many,
    at least one."""


@dataclass(kw_only=True)
class Child(Parent):
    """A child."""

    name: str
    kind: Literal["fast", "slow"] = "fast"
    """Which kind."""
    pair: tuple[int, int] = (4, 8)
    rest: tuple[float, ...] = ()
    share: Annotated[float, Bounds(0, 1, below=True)] | None = None
    mixed: Annotated[float, Bounds(0, 1)] | Annotated[int, Bounds(0)] = 0.5
    table: dict[str, Any] = field(default_factory=dict)


def checked(annotation: Any, value: Any) -> tuple[Any, list[str]]:
    faults: list[str] = []
    return check_value(value, annotation, "key", faults), faults


def test_options_of_a_dataclass() -> None:
    options = options_of(Child)
    assert list(options) == ["count", "name", "kind", "pair", "rest", "share", "mixed", "table"]
    assert options["name"].default is REQUIRED
    assert options["table"].default == {}
    assert options["count"].doc == "How many, at least one."
    assert options["kind"].doc == "Which kind."


def test_options_of_a_function() -> None:
    def build(width: int, *rest: int, depth: float = 1.5, **others: object) -> None: ...

    options = options_of(build)
    assert {name: option.default for name, option in options.items()} == {"width": REQUIRED, "depth": 1.5}
    assert takes_any(build) and not takes_any(Child)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1, 1.0),
        (float, "1e-4", 1e-4),
        (int, 200.0, 200),
        (str, 7, "7"),
        (tuple[int, int], [4, 8], (4, 8)),
        (tuple[float, ...], [1, 2, 3], (1.0, 2.0, 3.0)),
        (list[int], (1, 2), [1, 2]),
        (int | None, None, None),
        (Annotated[float, Bounds(0, 1)] | Annotated[int, Bounds(0)], 1, 1),
        (Annotated[float, Bounds(0, 1)] | Annotated[int, Bounds(0)], 1.0, 1.0),
        (Annotated[float, Bounds(0, 1)] | Annotated[int, Bounds(0)], 300, 300),
        (Any, object, object),
    ],
)
def test_values_that_fit(annotation: Any, value: Any, expected: Any) -> None:
    converted, faults = checked(annotation, value)
    assert not faults
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (int, 1.5, "key must be a whole number, but got 1.5"),
        (int, True, "key must be a whole number, but got True"),
        (bool, 1, "key must be true or false, but got 1"),
        (float, "fast", "key must be a number, but got 'fast'"),
        (str, None, "key must be text, but got null"),
        (Annotated[int, Bounds(1)], 0, "key must be a whole number >= 1, but got 0"),
        (Annotated[float, Bounds(0, 1, above=True, below=True)], 1.0, "key must be a number > 0 and < 1, but got 1.0"),
        (Annotated[float, Bounds(0)], float("nan"), "key must be a number >= 0, but got nan"),
        (tuple[int, int], [4, 8, 9], "key must be a list of 2, each a whole number, but got [4, 8, 9]"),
        (tuple[int, ...], [4, "x"], "key must be a list, each a whole number, but got [4, 'x']"),
        (Literal["cosine", "step"], "cosin", "one of cosine, step (did you mean 'cosine'?), but got 'cosin'"),
        (int | None, "x", "key must be a whole number or null, but got 'x'"),
    ],
)
def test_values_that_do_not(annotation: Any, value: Any, words: str) -> None:
    _, faults = checked(annotation, value)
    assert len(faults) == 1
    assert words in faults[0]


def test_every_fault_is_named_with_the_closest_key() -> None:
    faults: list[str] = []
    values = {"cuont": 2, "kind": "fst", "pair": 3, "share": 0.25}
    assert check_options(Child, values, "method.", faults) == {"share": 0.25}
    assert len(faults) == 4
    assert "unknown key method.cuont (did you mean 'method.count'?)" in faults[0]
    assert "method.kind" in faults[1] and "method.pair" in faults[2]
    assert faults[3] == "method.name must be given (text)"


def test_a_hint_of_a_users_own_type_is_not_judged() -> None:
    def build(thing: complex) -> None: ...

    faults: list[str] = []
    assert check_options(build, {"thing": "anything"}, "model.", faults) == {"thing": "anything"}
    assert not faults


@given(st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans(), st.floats())
def test_bounds_hold_what_they_say(low: float, high: float, above: bool, below: bool, value: float) -> None:
    bounds = Bounds(low, high, above=above, below=below)
    expected = (value > low or (not above and value == low)) and (value < high or (not below and value == high))
    assert bounds.hold(value) is expected


def test_plain_values_are_what_yaml_holds() -> None:
    assert plain({"a": (1, [2, (3,)]), "b": {"c": None}}) == {"a": [1, [2, [3]]], "b": {"c": None}}


def test_words_for_types() -> None:
    assert describe(tuple[int, int]) == "a list of 2, each a whole number"
    assert describe(Annotated[int, Bounds(1)] | None) == "a whole number >= 1 or null"
