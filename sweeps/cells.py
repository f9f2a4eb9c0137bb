"""How numbers of several seeds are written in one cell of a table, and where their runs started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestration.records import STARTED_FROM
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


def start_note(results: Mapping[str, Mapping[int, RunResult]]) -> str | None:
    """Say which methods started from the weights of a trained model, and whose steps count.

    Args:
        results: method -> seed -> result.

    Returns:
        One sentence; None where every run drew its own weights.
    """
    started = {m for m, own in results.items() if own and all(STARTED_FROM in r.environment for r in own.values())}
    if not started:
        return None
    steps = {method: _steps(own) for method, own in results.items()}
    before = ", ".join(f"{method}, {steps[method]} steps" for method in results if method not in started)
    training = [method for method in results if method in started and steps[method] != "0"]
    own = " or ".join(sorted({steps[method] for method in training}))
    parts = [f"take {own} of their own"] * bool(training)
    parts += [f"{', '.join(m for m in results if m in started and steps[m] == '0')} none"] * (started > set(training))
    same = "one file of weights for each seed" if not different_starts(results) else "files of weights that DIFFER"
    return f"{len(started)} methods start from {same} ({before}; they count for each alike) and {'; '.join(parts)}"


def different_starts(results: Mapping[str, Mapping[int, RunResult]]) -> list[int]:
    """Return the seeds whose runs started from more than one file of weights."""
    digests: dict[int, set[str]] = {}
    for own in results.values():
        for seed, result in own.items():
            if STARTED_FROM in result.environment:
                digests.setdefault(seed, set()).add(result.environment[STARTED_FROM])
    return sorted(seed for seed, found in digests.items() if len(found) > 1)


def _steps(own: Mapping[int, RunResult]) -> str:
    return " or ".join(map(str, sorted({result.steps for result in own.values()})))
