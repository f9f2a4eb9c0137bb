"""``geta report``: one self-contained page about the runs of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ConfigError
from orchestration.console import guarded, write
from sweeps.command import read_line

HELP = """\
usage: geta report STUDY [output=FILE.html] [reference=CELL] [--track]

Write one self-contained HTML page about every run at or below the folder STUDY: means, paired differences with
corrected intervals, the front of accuracy and relative BOPs, bits and channels of every layer, stages, and the
command, commit and digest of each run. Works on what `geta compare`, `geta ablate`, `geta table` and studies leave.

  output      the page (default STUDY/report.html)
  reference   cell that the others are compared with (default: base, or GETA, or the first)
  --track     also hand the pictures to the MLflow stores of the runs, as a run named "figures"
"""


def main(arguments: Sequence[str]) -> int:
    """Write a report from the command line."""
    if not arguments or any(each in ("-h", "--help") for each in arguments):
        write(HELP)
        return 0
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    from sweeps.report.page import report

    given = read_line(arguments, ("--track",), {"output": (str | None, None), "reference": (str | None, None)})
    if len(given.names) != 1 or given.values:
        raise ConfigError([f"one folder must be named, but got {[*given.names, *given.values]}"])
    folder = Path(given.names[0]).expanduser().absolute()
    output = Path(given.own["output"]) if given.own["output"] else folder / "report.html"
    found = report(folder, output, given.own["reference"], "--track" in given.flags)
    write(f"{sum(map(len, found.results.values()))} runs in {len(found.results)} cells: {output}")
    return 0
