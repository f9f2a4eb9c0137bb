"""How numbers of several seeds are written in one cell of a table."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.result import RunResult
from sweeps.statistics import Difference, Mean


def mean_text(values: Sequence[float], digits: int = 2) -> str:
    """Return mean and, from two values on, standard deviation."""
    found = Mean.of(values)
    text = f"{found.mean:.{digits}f}"
    return f"{text} ± {found.sd:.{digits}f}" if found.count > 1 else text


def interval_text(found: Difference | None, digits: int = 2) -> str:
    """Return a difference with its interval; with one pair there is none."""
    if found is None or not found.pairs:
        return ""
    if found.pairs < 2:
        return f"{found.mean:+.{digits}f}"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def bits_text(results: Sequence[RunResult]) -> str:
    """Return the average widths of weights and inputs, mean over the seeds."""
    weights = Mean.of([each.weight_bits for each in results]).mean
    inputs = Mean.of([each.activation_bits for each in results]).mean
    return f"{weights:.2f} / {inputs:.2f}"
