"""Errors that a user can cause. Each message states what must hold, the values at hand, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


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
    """A group cannot be removed, or the slimmed model does not equal the zeroed one."""


class ArtifactError(GetaError):
    """A saved model or checkpoint is missing, truncated or altered."""


class ScheduleError(GetaError):
    """Stage lengths do not fit, or an operation was asked for in the wrong stage."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``' (did you mean X?)'`` for the closest known name, else the list of the known ones."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else f" (known: {', '.join(names)})"
