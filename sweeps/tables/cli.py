"""``geta table``: a published table beside what is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ConfigError
from orchestration.console import write
from orchestration.rundir import DEFAULT_ROOT
from sweeps.command import STYLES, Given, command, keep_figures, one_name, output_of, read_line, say_failures
from sweeps.grid import Found
from sweeps.records import FOLDER
from sweeps.tables.spec import known, read
from sweeps.tables.table import Table

HELP = """\
usage: geta table NAME [scale=full|smoke] [--run | --dry-run] [rows=[R,...]] [output=DIR] [record=FILE] [records=DIR]
                  [--markdown | --latex | --html] [group.key=VALUE ...]

Print a published table beside what was measured here, or run what is missing of it.

  NAME        one of: {names}; or a file NAME.yaml of the same form
  scale       full: as published, with verdicts; smoke: same code, minutes on a CPU, no verdicts (default full)
  --run       run what is not complete, then print the table
  --dry-run   print the runs as commands with their GPU hours by the step times in records; run nothing
  rows        only these are run
  output      folder of the runs (default runs)
  record      JSON file: with --run it receives every run; without, the table is printed from it
  records     folder of records with step times (default docs/records)
"""
FLAGS = ("--run", "--dry-run", *STYLES)


def main(arguments: Sequence[str]) -> int:
    """Print or run a table from the command line."""
    return command(arguments, lambda: HELP.format(names=", ".join(known())), lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    own = {
        "scale": (str, "full"),
        "rows": (list[str], []),
        "output": (str, DEFAULT_ROOT),
        "record": (str | None, None),
        "records": (str, str(FOLDER)),
    }
    given = read_line(arguments, FLAGS, own)
    name = one_name(given, "table", known())
    if {"--run", "--dry-run"} <= given.flags:
        raise ConfigError(["only one of --run and --dry-run may be given"])
    table = Table(read(name), given.own["scale"], given.values, given.own["rows"])
    if "--dry-run" in given.flags:
        _dry_run(table, given)
        return 0
    if "--run" in given.flags:
        found = table.run(output_of(given))
        write(table.render(found.results, given.style))
        _keep(table, found, given)
        return 0
    if given.own["record"] is not None:
        write(table.render(table.from_record(Path(given.own["record"])), given.style))
        return 0
    found = table.collect(output_of(given))
    write(table.render(found.results, given.style))
    say_failures(found)
    return 0


def _keep(table: Table, found: Found, given: Given) -> None:
    """Draw the figures, hand them to the trackers, and write the record."""
    say_failures(found)
    folder = output_of(given) / "tables" / table.spec.name / table.scale / "figures"
    keep_figures(found, folder, f"{table.spec.title} ({table.scale})")
    if given.own["record"] is not None:
        table.save(found, Path(given.own["record"]))
        write(f"record: {given.own['record']}")


def _dry_run(table: Table, given: Given) -> None:
    """Print every run as a command, and what is known of its time."""
    from sweeps.estimate import StepTimes, commands

    plan = table.plan(output_of(given))
    times = StepTimes(Path(given.own["records"]))
    total: float | None = 0.0
    for cell, own in plan.items():
        for seed, config in own.items():
            hours = times.hours(config)
            total = None if hours is None or total is None else total + hours[0]
            said = "unknown" if hours is None else f"{hours[0]:.2f} ({hours[1]})"
            write(f"# {cell}, seed {seed}; GPU hours: {said}")
            write(next(iter(commands({cell: {seed: config}}))))
    write(f"# {sum(map(len, plan.values()))} runs; GPU hours in all: {'unknown' if total is None else f'{total:.1f}'}")
