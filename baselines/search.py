"""The space in which the hyper-parameters of a method are tuned: plain data that any study can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


def edges(dimension: Dimension) -> tuple[Any, ...]:
    """Return the values that bound a dimension: its ends, or all of its values."""
    return dimension.values if isinstance(dimension, OneOf) else (dimension.low, dimension.high)
