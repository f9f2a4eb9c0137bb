"""A published table, its runs, and both side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geta_core.errors import ArtifactError, ConfigError, closest
from orchestration.config import Config
from orchestration.result import RunResult
from sweeps.grid import Found, collect, plan_runs, run_grid
from sweeps.records import read_record, results_of, save_record
from sweeps.render import Sheet, Style, render
from sweeps.statistics import Mean
from sweeps.tables.spec import SCALES, Column, Published, Row, Scale, Spec, read
from sweeps.tables.verdict import RULE, verdict

MARKS = {
    "second-hand": "told by somebody who had the paper",
    "recalled": "from the literature, unchecked",
    "calculated": "computed from other published numbers",
    "missing": "not known",
}
Results = Mapping[str, Mapping[int, RunResult]]


@dataclass
class Table:
    """A published table at one scale.

    Args:
        spec: as its file states it.
        scale: ``full``, as published, or ``smoke``, minutes on a CPU; the runs of one are never shown with the other's.
        values: further ``group.key=value`` for every run, such as where the data lies.
        only: rows that are run; all of them if empty.

    Raises:
        ConfigError: for an unknown scale or row.
    """

    spec: Spec
    scale: Scale = "full"
    values: Sequence[str] = ()
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        names = [row.name for row in self.spec.rows]
        faults = [f"unknown row {name!r}{closest(name, names)}" for name in self.only if name not in names]
        if self.scale not in SCALES:
            faults.append(f"scale must be full or smoke, but got {self.scale!r}")
        if faults:
            raise ConfigError(faults)

    @classmethod
    def load(cls, name: str, scale: Scale = "full", **options: Any) -> Table:
        """Read a table by its name, or from a file."""
        return cls(read(name), scale, **options)

    def plan(self, output: Path) -> dict[str, dict[int, Config]]:
        """Compose every run of this scale.

        Raises:
            ConfigError: naming every fault, or why nothing can be run.
        """
        scale = self.spec.scale(self.scale)
        shared = [*self.spec.keys, *scale.keys]
        cells = {
            row.name: [*shared, *row.keys, *self.values]
            for row in self.spec.rows
            if row.keys and (not self.only or row.name in self.only)
        }
        folder = output / "tables" / self.spec.name / self.scale
        return plan_runs(cells, scale.seeds, folder, f"table-{self.spec.name}-{self.scale}")

    def run(self, output: Path) -> Found:
        """Run what is not complete."""
        return run_grid(self.plan(output))

    def collect(self, output: Path) -> Found:
        """Read what is complete; a table of which nothing can be run has no results."""
        return collect(self.plan(output)) if self.spec.scales else Found({})

    def from_record(self, path: Path) -> Results:
        """Read the results of a record.

        Raises:
            ArtifactError: when the record is of another table or scale.
        """
        record = read_record(path)
        wanted = {"kind": "table", "name": self.spec.name, "scale": self.scale}
        held = {key: record.get(key) for key in wanted}
        if held != wanted:
            raise ArtifactError(f"{path} must be the record of {wanted}, but is that of {held}")
        return results_of(record)

    def sheet(self, results: Results) -> Sheet:
        """Return the published and the measured numbers side by side; of small runs the measured ones alone."""
        columns = ["row"]
        for column in self._columns().values():
            columns += [f"{column.label}, published"] if self.scale == "full" else []
            columns += [f"{column.label}, here"] if column.measure else []
            columns += ["verdict"] if self.scale == "full" else []
        rows = [self._row(row, results) for row in self.spec.rows]
        return Sheet(f"{self.spec.title}; {self._scale_text()}", [*columns, "seeds"], rows, self._notes(results))

    def _columns(self) -> dict[str, Column]:
        """Return the columns that are shown."""
        return {key: each for key, each in self.spec.columns.items() if self.scale == "full" or each.measure}

    def _scale_text(self) -> str:
        if not self.spec.scales:
            return "nothing of it is run"
        return "full scale" if self.scale == "full" else "smoke: same code, small runs on a CPU, no verdicts"

    def _row(self, row: Row, results: Results) -> list[str]:
        own = results.get(row.name, {})
        cells = [row.name]
        seeds = len(self.spec.scale(self.scale).seeds) if self.spec.scales else 0
        for key, column in self._columns().items():
            published = row.cell(key)
            values = measured(own, column, row) if column.measure else []
            cells += [_published(published)] if self.scale == "full" else []
            if column.measure:
                cells.append(_measured(values) if values else "-" if self.scale == "full" else "NOT RUN")
            cells += [verdict(values, seeds, published, column)] if self.scale == "full" else []
        return [*cells, f"{len(own)} of {seeds}" if row.keys else "-"]

    def _notes(self, results: Results) -> list[str]:
        rows = self.spec.rows
        notes = []
        if self.scale == "full":
            used = {row.cell(key).mark for row in rows for key in self.spec.columns}
            notes += [f"published: {self.spec.source}", *self.spec.notes]
            notes += [f"({mark}): {text}" for mark, text in MARKS.items() if mark in used]
        for reason in dict.fromkeys(row.reason for row in rows if row.reason):
            notes.append(f"NOT RUN: {', '.join(row.name for row in rows if row.reason == reason)}: {reason}")
        if any(row.zeros for row in rows):
            names = ", ".join(row.name for row in rows if row.zeros)
            notes.append(f"BOPs of {names} count nonzero weights alone, as papers on unstructured pruning do")
        if self.spec.scales:
            notes.append("here: mean ± half the 95 % interval of the mean (Student's t) over the seeds")
            notes.append(self._margins() if self.scale == "full" else self._smoke())
        return notes

    def _margins(self) -> str:
        margins = "; ".join(
            f"{each.label}: {each.margin:g} points" if each.unit == "points" else f"{each.label}: {each.margin:.0%}"
            for each in self.spec.columns.values()
            if each.measure
        )
        return f"margins, fixed beforehand: {margins}. {RULE}"

    def _smoke(self) -> str:
        keys = " ".join(self.spec.scale("smoke").keys)
        return f"smoke ({keys}) shows that every row runs from its configuration to its numbers, and nothing else"

    def render(self, results: Results, style: Style = "text") -> str:
        """Return the table as text, Markdown, LaTeX or HTML."""
        return render(self.sheet(results), style)

    def save(self, found: Found, path: Path) -> None:
        """Write the record."""
        save_record(found, {"kind": "table", "name": self.spec.name, "scale": self.scale}, path)


def measured(own: Mapping[int, RunResult], column: Column, row: Row) -> list[float]:
    """Return what was measured for a cell, one number per seed, in percent."""
    if column.measure == "accuracy":
        return [100 * each.accuracy for each in own.values()]
    return [100 * (each.relative_sparse_bops if row.zeros else each.relative_bops) for each in own.values()]


def _published(cell: Published) -> str:
    if cell.value is None:
        return "(missing)"
    text = f"{cell.value:g}" if float(cell.value).is_integer() else f"{cell.value:.2f}"
    return text if cell.mark == "verbatim" else f"{text} ({cell.mark})"


def _measured(values: Sequence[float]) -> str:
    found = Mean.of(values)
    return f"{found.mean:.2f} ± {found.half:.2f}" if found.count > 1 else f"{found.mean:.2f}"
