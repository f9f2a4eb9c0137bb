"""Targets of a compression: what is accepted, and that every fault is named at once with its value and bounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import geta_core as geta
from geta_core.config import HIGHEST_BITS, LOWEST_BITS

BITS = st.integers(LOWEST_BITS, HIGHEST_BITS)


@st.composite
def ranges(draw: st.DrawFn, highest: int) -> tuple[int, int] | list[int] | None:
    low = draw(st.integers(LOWEST_BITS, highest))
    high = draw(st.integers(low, highest))
    return draw(st.sampled_from([(low, high), [low, high], None]))


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    initial = draw(BITS)
    return {
        "sparsity": draw(st.floats(0, 1, exclude_max=True) | st.just(0)),
        "weight_bits": draw(ranges(initial)),
        "activation_bits": draw(ranges(initial)),
        "initial_bits": initial,
        "heads": draw(st.sampled_from(["head", "head_dim"])),
        "divisible_by": draw(st.integers(1, 64)),
        "min_kept": draw(st.integers(1, 64)),
    }


def test_the_defaults_are_those_of_the_paper() -> None:
    config = geta.CompressionConfig()
    assert (config.sparsity, config.weight_bits, config.activation_bits, config.initial_bits) == (0.5, (4, 8), None, 16)
    assert config.pin == ()


@given(settings())
def test_everything_in_bounds_is_accepted(given_values: dict[str, Any]) -> None:
    config = geta.CompressionConfig(**given_values)
    for name, value in given_values.items():
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
    assert dataclasses.replace(config) == config


def faults(**values: Any) -> tuple[str, ...]:
    with pytest.raises(geta.ConfigError) as caught:
        geta.CompressionConfig(**values)
    assert str(caught.value) == "; ".join(caught.value.faults)
    assert "\n" not in str(caught.value)
    return caught.value.faults


NO_WHOLE = st.floats() | st.text(max_size=3) | st.booleans() | st.none() | st.just([1])
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "sparsity": st.floats(max_value=0, exclude_max=True)
    | st.floats(min_value=1)
    | st.just(float("nan"))
    | st.sampled_from([True, "0.5", None, [0.5]]),
    "weight_bits": st.tuples(st.integers(-5, LOWEST_BITS - 1), st.integers(8, 12))
    | st.tuples(BITS, st.integers(HIGHEST_BITS + 1, 99))
    | st.tuples(BITS, BITS, BITS)
    | st.tuples(st.floats(2, 8), st.floats(8, 16))
    | st.sampled_from([8, "48", (4,), (), (True, 8), {4, 8}, (None, 8)]),
    "activation_bits": BITS.filter(lambda bits: bits > LOWEST_BITS).map(lambda bits: (bits, bits - 1)),
    "initial_bits": st.integers(max_value=LOWEST_BITS - 1) | st.integers(min_value=HIGHEST_BITS + 1) | NO_WHOLE,
    "heads": st.text(max_size=5).filter(lambda text: text != "head") | st.sampled_from([None, 4, ["head"]]),
    "divisible_by": st.integers(max_value=0) | NO_WHOLE,
    "min_kept": st.integers(max_value=0) | NO_WHOLE,
}


@pytest.mark.parametrize("name", WRONG)
@given(data=st.data())
def test_one_fault_is_named_with_its_value(name: str, data: st.DataObject) -> None:
    value = data.draw(WRONG[name])
    (fault,) = faults(**{"weight_bits": None, name: value})
    assert fault.startswith(name)
    assert repr(value) in fault or all(str(part) in fault for part in value)
    assert " must " in fault


@given(data=st.data(), names=st.sets(st.sampled_from(sorted(WRONG)), min_size=2))
def test_all_faults_are_named_at_once(data: st.DataObject, names: set[str]) -> None:
    found = faults(**{"weight_bits": None, **{name: data.draw(WRONG[name]) for name in sorted(names)}})
    assert {fault.replace(":", " ").split()[0] for fault in found} == names
    assert len(found) == len(names)


def test_a_reversed_range_is_turned_round_in_the_message() -> None:
    assert faults(weight_bits=(8, 4)) == (
        "weight_bits: the lowest must not exceed the highest, but got (8, 4); did you mean (4, 8)?",
    )


@given(st.integers(LOWEST_BITS, HIGHEST_BITS - 1))
def test_the_start_is_no_narrower_than_the_end(initial: int) -> None:
    for name in ("weight_bits", "activation_bits"):
        others = {"weight_bits": None, "activation_bits": None}
        found = faults(**{**others, name: (2, initial + 1)}, initial_bits=initial)
        assert found == (f"initial_bits must be at least the upper end of {name}, but got {initial} < {initial + 1}",)


def test_one_thing_to_pin_needs_no_tuple() -> None:
    layer = nn.Linear(2, 2)
    assert geta.CompressionConfig(pin="head").pin == ("head",)  # type: ignore[arg-type]
    assert geta.CompressionConfig(pin=layer).pin == (layer,)  # type: ignore[arg-type]
    assert geta.CompressionConfig(pin=["a", layer]).pin == ("a", layer)  # type: ignore[arg-type]


def test_a_config_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        geta.CompressionConfig().sparsity = 0.9  # type: ignore[misc]
    with pytest.raises(TypeError, match="sparcity"):
        geta.CompressionConfig(sparcity=0.9)  # type: ignore[call-arg]
