"""What the commands share: tables, and errors as one line each with an exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from geta_core.errors import ConfigError, GetaError
from orchestration.signals import StoppedError

USER_ERROR = 2
"""Exit code when something the user can put right went wrong."""
WIDE = 180
"""Columns of a table that does not go to a terminal."""


def write(text: str = "") -> None:
    """Write a line to the output."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """Write one line to the error stream; where that is a file on a full disk, the exit code has to do."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"geta: {' '.join(text.split())}\n")


class Parser(argparse.ArgumentParser):
    """Reads a command line; what is wrong with it becomes one line, as everything else that the user can put right."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and leave with exit code 2."""
        complain(f"{message}; `{self.prog} --help` shows what there is")
        sys.exit(USER_ERROR)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; what the user can put right becomes one line per fault and exit code 2."""
    logging.basicConfig(format="geta: %(message)s", level=logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        return command()
    except ConfigError as error:
        for fault in error.faults:
            complain(fault)
        return USER_ERROR
    except GetaError as error:
        complain(str(error))
        return USER_ERROR
    except StoppedError as stopped:
        complain(str(stopped))
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[int] = ()) -> None:
    """Print a table; the first column is text, the others are numbers.

    Args:
        title: stands above it.
        columns: headings.
        rows: cells as text.
        texts: positions of further columns that are text; where room is short, their cells go on in the next line.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _plain_table(title, columns, rows, texts)
        return
    drawn = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        left = number == 0 or number in texts
        drawn.add_column(
            column,
            justify="left" if left else "right",
            no_wrap=number not in texts,
            overflow="fold" if left else "ellipsis",
        )
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else WIDE).print(drawn)


def _plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[int] = ()
) -> None:
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    write(title)
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if at and at not in texts else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        write("  ".join(cells).rstrip())
