"""Runs an ablation and stands its variants beside the base: differences with corrected intervals, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geta_core.errors import ConfigError, closest
from orchestration.config import Config
from orchestration.result import RunResult
from sweeps.ablations.spec import Base, Spec, read
from sweeps.cells import bits_text, interval_text, mean_text
from sweeps.grid import Found, collect, plan_runs, run_grid
from sweeps.records import save_record
from sweeps.render import Sheet, Style, render
from sweeps.statistics import Difference, Mean, paired_differences, resolution

BASE = "base"
"""Name of the cell that the variants are compared with."""


@dataclass
class Ablation:
    """A base and its variants.

    Args:
        spec: as its file states it.
        base_name: which of its bases.
        values: further ``group.key=value`` for every run.
        seeds: instead of the base's own.
        only: variants that are run and shown; all of them if empty.

    Raises:
        ConfigError: when a variant does not differ from the base in exactly one key, and for any bad key.
    """

    spec: Spec
    base_name: str = ""
    values: Sequence[str] = ()
    seeds: Sequence[int] = ()
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        faults = []
        self.base_name = self.base_name or next(iter(self.spec.bases))
        if self.base_name not in self.spec.bases:
            faults.append(f"unknown base {self.base_name!r}{closest(self.base_name, self.spec.bases)}")
        for name in self.only:
            if name not in self.spec.variants:
                faults.append(f"unknown variant {name!r}{closest(name, self.spec.variants)}")
        if faults:
            raise ConfigError(faults)

    @classmethod
    def load(cls, name: str, base: str = "", **options: Any) -> Ablation:
        """Read an ablation by its name, or from a file, and choose a base."""
        return cls(read(name), base, **options)

    @property
    def base(self) -> Base:
        """What is varied."""
        return self.spec.bases[self.base_name]

    def cells(self) -> dict[str, list[str]]:
        """Return the keys of the base and of each variant."""
        shared = [*self.base.keys, *self.values]
        chosen = {name: pair for name, pair in self.spec.variants.items() if not self.only or name in self.only}
        return {BASE: shared, **{name: [*shared, _argument(*pair)] for name, pair in chosen.items()}}

    def plan(self, output: Path) -> dict[str, dict[int, Config]]:
        """Compose every run and check that each variant differs from the base in exactly one resolved key.

        Raises:
            ConfigError: naming every fault.
        """
        folder = output / "ablations" / self.spec.name / self.base_name
        study = f"ablate-{self.spec.name}-{self.base_name}"
        plan = plan_runs(self.cells(), self.seeds or self.base.seeds, folder, study)
        faults = [fault for name in plan for fault in _difference_faults(name, plan) if name != BASE]
        if faults:
            raise ConfigError(faults)
        return plan

    def run(self, output: Path) -> Found:
        """Run what is not complete."""
        return run_grid(self.plan(output))

    def collect(self, output: Path) -> Found:
        """Read what is complete."""
        return collect(self.plan(output))

    def sheet(self, results: Mapping[str, Mapping[int, RunResult]]) -> Sheet:
        """Return the table of differences."""
        differences = accuracy_differences(results)
        columns = ["variant", "changed", "seeds", "test accuracy %", "Δ accuracy, points", "told apart"]
        columns += ["rel. BOPs %", "Δ rel. BOPs, points", "groups removed %", "weight / input bits"]
        cost = differences_of(results, lambda each: 100 * each.relative_bops)
        rows = [self._row(name, results[name], differences, cost) for name in self.cells() if name in results]
        notes = [
            f"base: {' '.join(self.cells()[BASE])}",
            "mean ± standard deviation; Δ: mean paired difference to the base over equal seeds with its interval",
            f"accuracy: {resolution(differences)}",
        ]
        absent = [name for name in self.cells() if name not in results]
        if absent:
            notes.append(f"not run yet: {', '.join(absent)}")
        if self.base.scale == "smoke":
            notes.append("smoke: the same code in minutes on a CPU; says nothing about the method at full scale")
        return Sheet(f"{self.spec.title} ({self.base_name})", columns, rows, notes)

    def _row(
        self,
        name: str,
        own: Mapping[int, RunResult],
        differences: Mapping[str, Difference],
        cost: Mapping[str, Difference],
    ) -> list[str]:
        changed = "" if name == BASE else _argument(*self.spec.variants[name])
        sparsity = Mean.of([100 * each.group_sparsity for each in own.values()])
        found = differences.get(name)
        verdict = "" if found is None else ("no" if not found.decided else "better" if found.mean > 0 else "worse")
        return [
            name,
            changed,
            str(len(own)),
            mean_text([100 * each.accuracy for each in own.values()]),
            interval_text(found),
            verdict,
            mean_text([100 * each.relative_bops for each in own.values()], 3),
            interval_text(cost.get(name), 3),
            f"{sparsity.mean:.1f}",
            bits_text(list(own.values())),
        ]

    def render(self, results: Mapping[str, Mapping[int, RunResult]], style: Style = "text") -> str:
        """Return the table as text, Markdown, LaTeX or HTML."""
        return render(self.sheet(results), style)

    def differences(self, results: Mapping[str, Mapping[int, RunResult]]) -> dict[str, Difference]:
        """Return the paired differences of test accuracy to the base, in points."""
        return accuracy_differences(results)

    def head(self) -> dict[str, Any]:
        """Return what tells this ablation's record from others."""
        return {"kind": "ablation", "name": self.spec.name, "base": self.base_name, "scale": self.base.scale}

    def save(self, found: Found, path: Path) -> None:
        """Write the record."""
        save_record(found, self.head(), path)


def accuracy_differences(results: Mapping[str, Mapping[int, RunResult]]) -> dict[str, Difference]:
    """Return the paired differences of test accuracy to the base, in points."""
    return differences_of(results, lambda each: 100 * each.accuracy)


def differences_of(results: Mapping[str, Mapping[int, RunResult]], read_value: Any) -> dict[str, Difference]:
    """Return the paired differences of a number to the base; none where the base has no run."""
    if BASE not in results:
        return {}
    values = {name: {seed: read_value(each) for seed, each in own.items()} for name, own in results.items()}
    return paired_differences(values, BASE)


def _argument(key: str, value: Any) -> str:
    """Write a key as the command line takes it."""
    return f"{key}={_yaml(value)}"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_yaml, value))}]" if isinstance(value, (list, tuple)) else str(value)


def _difference_faults(name: str, plan: Mapping[str, Mapping[int, Config]]) -> list[str]:
    """Say where a variant's resolved configuration differs from the base's in other than one key."""
    base, own = (next(iter(plan[each].values())).deciding() for each in (BASE, name))
    changed = sorted(key for key in base.keys() | own.keys() if base.get(key) != own.get(key))
    if len(changed) == 1:
        return []
    said = f"but changes {len(changed)}: {', '.join(changed)}" if changed else "but changes nothing"
    return [f"variant {name!r} must differ from the base in exactly one resolved key, {said}"]
