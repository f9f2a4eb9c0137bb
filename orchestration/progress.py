"""Shows how a run goes: a bar and a table row per epoch on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from orchestration.tracking.base import Line


class Progress(Protocol):
    """What the loop tells."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, step: int) -> None:
        """Say how many steps are done."""

    def line(self, line: Line) -> None:
        """Show the numbers of an epoch or a stage."""

    def say(self, text: str) -> None:
        """Show a sentence."""


class Silent:
    """Shows nothing: for the workers that do not lead."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, step: int) -> None:
        """Show nothing."""

    def line(self, line: Line) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""


class Plain:
    """Lines of text, for logs and where rich is not installed."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def advance(self, step: int) -> None:
        """Show nothing: a line per step would be too much."""

    def line(self, line: Line) -> None:
        """Write one line."""
        self.say(describe(line, self._total))

    def say(self, text: str) -> None:
        """Write one line."""
        self._stream.write(text + "\n")
        self._stream.flush()


class Bar:
    """A rich progress bar under the lines."""

    def __init__(self, total: int, done: int, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._total = total
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        console = Console(stderr=True)
        self._progress = Progress(*columns, TextColumn("steps"), TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task(title, total=total, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def line(self, line: Line) -> None:
        """Show a line above the bar."""
        self.say(describe(line, self._total))

    def say(self, text: str) -> None:
        """Show a sentence above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)


def open_progress(total: int, done: int, title: str) -> Progress:
    """Return a bar on a terminal where rich is installed, else plain lines on the error stream."""
    if sys.stderr.isatty():
        try:
            return Bar(total, done, title)
        except ImportError:
            pass
    return Plain(total, sys.stderr)


def describe(line: Line, total: int) -> str:
    """Say a line of the journal in one line of text."""
    prefix = "stage/" if line.kind == "stage" else ""
    head = f"stage {line.stage} done" if prefix else f"epoch {line.epoch:>3} {line.stage:<10}"
    found = {key.removeprefix(prefix): value for key, value in line.metrics.items()}
    shown = [f"step {line.step}/{total}"]
    for key, text in _SHOWN.items():
        if key in found:
            shown.append(text.format(found[key]))
    return "  ".join([head, *shown])


_SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/accuracy": "train {:.2%}",
    "val/accuracy": "val {:.2%}",
    "group_sparsity": "sparsity {:.1%}",
    "weight_bits": "W {:.2f}",
    "activation_bits": "A {:.2f}",
    "relative_bops": "rel. BOPs {:.2%}",
    "lr": "lr {:.2g}",
}
