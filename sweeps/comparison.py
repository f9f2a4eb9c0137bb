"""What a comparison found, as a table for people and as a record."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from baselines.matching import TOLERANCE, meets
from orchestration.console import table, write
from orchestration.files import write_json
from orchestration.result import RunResult
from sweeps.cells import start_note
from sweeps.statistics import Difference, paired_differences
from sweeps.tuning import Trial

COLUMNS: dict[str, Callable[[RunResult], float]] = {
    "test accuracy %": lambda result: 100 * result.accuracy,
    "group sparsity %": lambda result: 100 * result.group_sparsity,
    "weight bits": lambda result: result.weight_bits,
    "input bits": lambda result: result.activation_bits,
    "rel. BOPs %": lambda result: 100 * result.relative_bops,
    "bytes": lambda result: result.bytes,
    "ms per image": lambda result: result.latency_ms,
}
MISSED = "missed"


@dataclass
class Comparison:
    """Results side by side.

    Attributes:
        reference: method that the others are compared with.
        trials: of tuning, per method.
        results: method -> seed -> result.
        targets: method -> seed -> relative BOPs that it was to meet.
        failures: method -> why a run of it did not come to its end.
        tuned: method -> best trial, where methods were tuned.
    """

    reference: str
    trials: int = 1
    results: dict[str, dict[int, RunResult]] = field(default_factory=dict)
    targets: dict[str, dict[int, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    tuned: dict[str, Trial] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """Name of the task."""
        return next(result.task for found in self.results.values() for result in found.values())

    def differences(self) -> dict[str, Difference]:
        """Return the paired differences of test accuracy to the reference, in points; none where it is missing.

        A method that missed its target is not compared: its accuracy was had at another price.
        """
        if self.reference not in self.results:
            return {}
        values = {
            method: {seed: 100 * result.accuracy for seed, result in found.items()}
            for method, found in self.results.items()
            if not self.missed(method)
        }
        return paired_differences(values, self.reference)

    def missed(self, method: str) -> list[int]:
        """Return the seeds with which a method's relative BOPs are further from its target than the tolerance."""
        found = self.results.get(method, {})
        return [s for s, target in self.targets.get(method, {}).items() if not meets(found[s].relative_bops, target)]


def print_comparison(found: Comparison, title: str) -> None:
    """Print one row per method: means, standard deviations where there are several seeds, and differences."""
    differences = found.differences()
    rows = []
    for method, results in found.results.items():
        cells = [_cell([read(each) for each in results.values()]) for read in COLUMNS.values()]
        last = MISSED if found.missed(method) else _difference(differences.get(method))
        rows.append([method, *cells, *([last] if differences or last else [])])
    width = max(map(len, rows), default=0)
    heads = ["method", *COLUMNS, f"to {found.reference}"][:width]
    table(title, heads, [[*row, *[""] * (width - len(row))] for row in rows])
    for line in notes(found):
        write(line)


def notes(found: Comparison) -> list[str]:
    """Return what must be said below the table."""
    lines = []
    for method in found.results:
        lines += [_missed(found, method)] if found.missed(method) else []
    seeds = max((len(results) for results in found.results.values()), default=0)
    if found.differences() and seeds > 1:
        lines.append(
            f"to {found.reference}: mean paired difference in points over {seeds} seeds with its 95 % interval, "
            "corrected for the number of comparisons (Holm); where it holds 0 the seeds cannot tell the two apart"
        )
    elif found.differences():
        lines.append(f"to {found.reference}: difference in points of one seed, which decides nothing")
    start = start_note(found.results)
    lines += [] if start is None else [start]
    if found.trials > 1:
        lines.append(f"every method was tuned with {found.trials} trials on the validation split")
    return lines + [f"{method}: {reason}" for method, reason in found.failures.items()]


def save_record(found: Comparison, path: Path) -> None:
    """Write every result, without the folder that the run lies in."""
    results = [
        {key: value for key, value in asdict(result).items() if key != "directory"}
        for own in found.results.values()
        for result in own.values()
    ]
    for result in results:  # the kind of machine, not which one
        result["environment"] = {**result["environment"], "platform": f"{platform.system()} {platform.machine()}"}
    content = {
        "reference": found.reference,
        "trials": found.trials,
        "tuned": {method: list(trial.keys) for method, trial in found.tuned.items()},
        "missed": {method: found.missed(method) for method in found.results if found.missed(method)},
        "targets": {m: {str(seed): value for seed, value in own.items()} for m, own in found.targets.items()},
        "failures": found.failures,
        "differences": {method: _plain(each) for method, each in found.differences().items()},
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _missed(found: Comparison, method: str) -> str:
    ends = ", ".join(
        f"{found.results[method][seed].relative_bops:.2%} instead of {found.targets[method][seed]:.2%} (seed {seed})"
        for seed in found.missed(method)
    )
    return f"{method} {MISSED} its relative BOPs by more than {TOLERANCE:.0%} and is not compared: {ends}"


def _plain(found: Difference) -> dict[str, float | bool | None]:
    """JSON has no infinity: an interval that nothing bounds has no ends."""
    return {key: value if math.isfinite(value) else None for key, value in asdict(found).items()}


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    if found.pairs < 2:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _cell(values: Sequence[float]) -> str:
    digits = 0 if min(values) >= 1000 else 2
    text = f"{statistics.fmean(values):,.{digits}f}"
    spread = f"{statistics.stdev(values):,.{digits}f}" if len(values) > 1 else "0"
    return f"{text} ± {spread}" if float(spread.replace(",", "")) else text
