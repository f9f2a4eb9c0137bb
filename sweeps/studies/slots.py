"""The runs of a study in their order: every setting of every method with every seed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One run of a study: one trial.

    Attributes:
        index: position in the study.
        method: as ``method=``.
        setting: number of the method's setting, from 0.
        seed: of the run.
    """

    index: int
    method: str
    setting: int
    seed: int

    @property
    def cell(self) -> str:
        """Name of the runs that differ in their seed alone."""
        return f"{plain(self.method)}-{self.setting:03d}"

    @property
    def folder(self) -> str:
        """Name of the run directory."""
        return f"{self.index:05d}-{self.cell}-s{self.seed}"


def plain(name: str) -> str:
    """Return a name that fits into a file's."""
    return re.sub(r"[^\w.-]+", "_", name)


def slots(methods: Sequence[str], trials: int, seeds: Sequence[int]) -> Iterator[Slot]:
    """Yield the runs; more trials only add runs at the end."""
    index = 0
    for setting in range(trials):
        for method in methods:
            for seed in seeds:
                yield Slot(index, method, setting, seed)
                index += 1
