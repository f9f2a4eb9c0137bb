"""Errors that a user can cause. Each message states what must hold, the values at hand, and the fix."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence

LEAST_LIKENESS = 0.5
"""How alike (0 to 1) a known name must be to be suggested for an unknown one."""


class GetaError(Exception):
    """Base class: the command line prints it as one line and exits with code 2."""


class ConfigError(GetaError):
    """Every fault of a configuration at once.

    Args:
        faults: one sentence per fault, each naming the key, its value and what must hold.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class UnsupportedOpError(GetaError):
    """The graph holds an operation without a dependency rule; nothing unknown is ever guessed."""


class PruningError(GetaError):
    """A group cannot be removed, or the slimmed model does not equal the zeroed one.

    Args:
        message: one sentence.
        gap: by how much the two models differ, where both ran.
    """

    def __init__(self, message: str, gap: float | None = None) -> None:
        self.gap = gap
        super().__init__(message)


class ArtifactError(GetaError):
    """A saved model or checkpoint is missing, truncated or altered."""


class ScheduleError(GetaError):
    """Stage lengths do not fit, or an operation was asked for in the wrong stage."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``' (did you mean X?)'`` for the closest known name, else the list of the known ones."""
    names = sorted(known)

    def likeness(other: str) -> tuple[float, int]:
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False)))
        return difflib.SequenceMatcher(None, name, other).ratio(), shared

    best = max(names, key=likeness, default="")
    alike = bool(names) and likeness(best)[0] >= LEAST_LIKENESS
    return f" (did you mean {best!r}?)" if alike else f" (known: {', '.join(names)})"
