"""Shows how a study goes: a bar on a terminal, a line per run elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

from sweeps.studies.ledger import State
from sweeps.studies.slots import Slot


class Display:
    """Says what happens to the runs.

    Args:
        title: of the study.
        total: number of runs.
        quiet: whether nothing is shown.
    """

    def __init__(self, title: str, total: int, quiet: bool = False) -> None:
        self._title, self._total, self._quiet = title, total, quiet
        self._counts: dict[str, int] = {"complete": 0, "pruned": 0, "failed": 0, "running": 0}
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[now]}"),
            ]
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(self._title, total=self._total, now="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def began(self, slot: Slot) -> None:
        """Count a run that goes on."""
        self._counts["running"] += 1
        self._update()

    def done(
        self, slot: Slot, state: State, values: tuple[float, ...], reason: str = "", known_before: bool = False
    ) -> None:
        """Count a run that has ended, and say what it gave."""
        self._counts[state] += 1
        if not known_before:
            self._counts["running"] -= 1
            shown = "  ".join(f"{value:.4f}" for value in values) or reason
            ended = sum(self._counts.values()) - self._counts["running"]
            self.say(f"{ended}/{self._total} {slot.folder}: {state}  {shown}".rstrip())
        self._update()

    def say(self, text: str) -> None:
        """Show a sentence."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def _update(self) -> None:
        if self._bar is not None:
            counts = self._counts
            now = f"{counts['running']} running" + (f", {counts['failed']} failed" if counts["failed"] else "")
            self._bar.update(self._task, completed=sum(counts.values()) - counts["running"], now=now)
