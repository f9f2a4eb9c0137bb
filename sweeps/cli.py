"""The console script ``geta``. Each command is imported when it is asked for, so that ``geta --help`` is instant."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import cast

from orchestration.console import Parser

COMMANDS = {
    "run": ("orchestration.cli_run", "main", "train, compress and measure one model"),
    "status": ("orchestration.cli_jobs", "status", "say how far runs are, here or under Slurm"),
    "logs": ("orchestration.cli_jobs", "logs", "print what a run has written, or follow it"),
    "cancel": ("orchestration.cli_jobs", "cancel", "end the Slurm job of a run"),
    "doctor": ("orchestration.cli_doctor", "main", "check that a Slurm cluster can run this, and say what to fix"),
    "inspect": ("orchestration.cli_inspect", "main", "say what of a model can be removed, what stays and why"),
    "config": ("orchestration.cli_config", "main", "show a run's whole configuration and where each value comes from"),
    "repeat": (
        "orchestration.cli_repeat",
        "main",
        "run the configuration of a run directory again and compare the numbers",
    ),
    "compare": ("sweeps.compare", "main", "run several methods under one budget and print the table"),
    "ablate": (
        "sweeps.ablations.cli",
        "main",
        "run variants that differ in one key each, and print what each is worth",
    ),
    "table": ("sweeps.tables.cli", "main", "print a published table beside what is measured here, or run it"),
    "check-records": ("sweeps.cli_records", "main", "read every record again, and the tables made of them"),
    "report": ("sweeps.report.cli", "main", "write one HTML page about the runs of a folder"),
    "sweep": ("sweeps.cli_sweep", "main", "run a study: many settings of several methods, on one machine or a cluster"),
    "models": ("orchestration.cli_show", "models", "list the models and their keys"),
    "tasks": ("orchestration.cli_show", "tasks", "list the data sets and their keys"),
    "methods": ("orchestration.cli_show", "methods", "list the methods and their keys"),
    "measure": ("orchestration.cli_measure", "main", "check a compressed model and print what it costs"),
    "export": ("orchestration.cli_export", "main", "write a compressed model as ONNX or .pt2, and compare it"),
    "sync": ("orchestration.cli_sync", "main", "bring the runs' copies in MLflow up to date"),
    "services": ("orchestration.cli_services", "main", "PostgreSQL and MLflow's server for a team: up, down, status"),
    "ui": ("orchestration.cli_ui", "main", "show local runs in the browser (MLflow)"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        module, function, _ = COMMANDS[given[0]]
        return cast(int, getattr(importlib.import_module(module), function)(given[1:]))
    parser = _parser()
    named = parser.parse_args(given)
    if named.command is None:
        parser.print_help()
        return 0
    from geta_core.errors import closest

    sys.stderr.write(f"geta: unknown command {named.command!r}{closest(named.command, COMMANDS)}\n")
    return 2


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items())
    parser = Parser(
        "geta",
        description="Joint structured pruning and mixed-precision quantization-aware training.",
        epilog=f"commands:\n{listed}\n\n`geta COMMAND --help` explains each of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"geta {_version()}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    return parser


def _version() -> str:
    try:
        return metadata.version("geta")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
