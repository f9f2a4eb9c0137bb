"""The space in which the hyper-parameters of a method are tuned: plain data that any study can read.

Each method's own space stands in a YAML file next to it (``djpq.yaml`` beside ``djpq.py``); users write theirs in the
same form. A dimension is a mapping:

    {low: 0.02, high: 0.3}                    a number; log: true spreads its logarithm evenly
    {low: 2, high: 8, whole: true}            a whole number, both ends included
    {values: [minmax, percentile, mse]}       one of a few values
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geta_core.errors import ConfigError, closest


@dataclass(frozen=True)
class Real:
    """A number in [low, high].

    Attributes:
        log: whether the logarithm is what is spread evenly.
    """

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Whole:
    """A whole number in [low, high], both included."""

    low: int
    high: int


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[Any, ...]


Dimension = Real | Whole | OneOf
Space = Mapping[str, Dimension]
"""Key of the method (without ``method.``) -> where it is searched."""
ENTRIES = ("low", "high", "log", "whole", "values")


def edges(dimension: Dimension) -> tuple[Any, ...]:
    """Return the values that bound a dimension: its ends, or all of its values."""
    return dimension.values if isinstance(dimension, OneOf) else (dimension.low, dimension.high)


def declared(module: str, name: str) -> Space:
    """Return the space in the YAML file ``name`` beside a module.

    Args:
        module: ``__file__`` of the module.
        name: of the method, and of the file without its ending.

    Raises:
        ConfigError: naming every fault of the file.
    """
    import yaml

    path = Path(module).with_name(f"{name}.yaml")
    faults: list[str] = []
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    space = parse_space(values or {}, f"{path.name}: ", faults)
    if faults:
        raise ConfigError(faults)
    return space


def parse_space(
    values: Mapping[str, Any], prefix: str, faults: list[str], known: Iterable[str] | None = None
) -> dict[str, Dimension]:
    """Read a space from plain values.

    Args:
        values: key -> mapping of a dimension.
        prefix: how the keys are called in messages.
        faults: every fault is appended here.
        known: the keys that there are; None: any.
    """
    names = None if known is None else set(known)
    found = {}
    for key, value in values.items():
        if names is not None and key not in names:
            faults.append(f"unknown key {prefix}{key}{closest(str(key), names)}")
            continue
        dimension = parse_dimension(value, f"{prefix}{key}", faults)
        if dimension is not None:
            found[str(key)] = dimension
    return found


def parse_dimension(value: Any, key: str, faults: list[str]) -> Dimension | None:
    """Read one dimension; None with a fault where it is none."""
    if not isinstance(value, Mapping):
        faults.append(f"{key} must be a mapping such as {{low: 0.1, high: 0.9}} or {{values: [4, 8]}}, got {value!r}")
        return None
    unknown = [str(entry) for entry in value if entry not in ENTRIES]
    faults.extend(f"unknown entry {entry!r} of {key}{closest(entry, ENTRIES)}" for entry in unknown)
    if unknown:
        return None
    return _one_of(value, key, faults) if "values" in value else _interval(value, key, faults)


def plain_dimension(dimension: Dimension) -> dict[str, Any]:
    """Return the mapping that ``parse_dimension`` reads."""
    if isinstance(dimension, OneOf):
        return {"values": [list(each) if isinstance(each, tuple) else each for each in dimension.values]}
    if isinstance(dimension, Whole):
        return {"low": dimension.low, "high": dimension.high, "whole": True}
    return {"low": dimension.low, "high": dimension.high, **({"log": True} if dimension.log else {})}


def _one_of(value: Mapping[str, Any], key: str, faults: list[str]) -> OneOf | None:
    values = value["values"]
    if len(value) > 1 or not isinstance(values, (list, tuple)) or not values:
        faults.append(f"{key}.values must be a list with at least one value, and stand alone, but got {dict(value)!r}")
        return None
    frozen = tuple(tuple(each) if isinstance(each, list) else each for each in values)
    if len(set(map(repr, frozen))) < len(frozen):
        faults.append(f"{key}.values must differ, but got {values!r}")
        return None
    return OneOf(frozen)


def _interval(value: Mapping[str, Any], key: str, faults: list[str]) -> Real | Whole | None:
    low, high = value.get("low"), value.get("high")
    flags = [value.get(name, False) for name in ("log", "whole")]
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not all(isinstance(flag, bool) for flag in flags):
        faults.append(f"{key} must have the numbers low and high, and log or whole as true or false, got {dict(value)}")
        return None
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    log, whole = flags
    if not low < high:
        faults.append(f"{key}.low must be below {key}.high, but got {low} and {high}")
    elif log and low <= 0:
        faults.append(f"{key}.low must be above 0 with log, but got {low}")
    elif whole and (log or not (float(low).is_integer() and float(high).is_integer())):
        faults.append(f"{key} must have whole ends and no log with whole, but got {dict(value)}")
    else:
        return Whole(int(low), int(high)) if whole else Real(float(low), float(high), log)
    return None
