"""``geta doctor``: can this Slurm cluster run it, and what is to be fixed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.console import Parser, guarded, write
from orchestration.rundir import DEFAULT_ROOT

if TYPE_CHECKING:
    from orchestration.config import LauncherSettings
    from orchestration.launchers.doctor import Finding

TO_FIX = 1
"""Exit code when something must be fixed."""
DESCRIPTION = """\
Check a Slurm cluster from a machine that submits to it: commands, controller, accounting, partition, and by a tiny job
what a node sees and whether it gets Slurm's signals and may return to the queue. Takes about two minutes beyond the
time in the queue; --quick takes seconds, but does not wait for the warning before a time limit.
"""


def main(arguments: Sequence[str]) -> int:
    """Examine the cluster from the command line."""
    parser = Parser("geta doctor", description=DESCRIPTION)
    parser.add_argument("--partition", help="the same as launcher.partition=NAME")
    parser.add_argument("--folder", default=DEFAULT_ROOT, help="where the runs will lie (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="do not wait for a time limit")
    parser.add_argument("--patience", type=float, default=600, help="seconds in the queue (default: %(default)s)")
    parser.add_argument("values", nargs="*", metavar="launcher.key=value", help="as for `geta run launcher=slurm`")
    given = parser.parse_intermixed_args(arguments)

    def examine() -> int:
        from orchestration.launchers import doctor

        settings = read_settings(given.values, given.partition)
        good = doctor.examine(settings, Path(given.folder), given.quick, given.patience, show)
        write("nothing must be fixed" if good else "something must be fixed: see the lines that begin with FIX")
        return 0 if good else TO_FIX

    return guarded(examine)


def read_settings(values: Sequence[str], partition: str | None) -> LauncherSettings:
    """Return launcher settings from ``launcher.key=value``.

    Raises:
        ConfigError: naming every fault.
    """
    from baselines.schema import check_options
    from geta_core.errors import ConfigError
    from orchestration.config import LauncherSettings
    from orchestration.values import split_arguments

    faults: list[str] = []
    _, keys = split_arguments(values, (), faults)
    faults += [
        f"geta doctor takes launcher.key=value, but got {key}" for key in keys if not key.startswith("launcher.")
    ]
    chosen = {key.removeprefix("launcher."): value for key, value in keys.items() if key.startswith("launcher.")}
    if partition is not None:
        chosen["partition"] = partition
    checked = check_options(LauncherSettings, {**chosen, "name": "slurm"}, "launcher.", faults)
    if faults:
        raise ConfigError(faults)
    return LauncherSettings(**checked)


def show(finding: Finding) -> None:
    """Write a finding as it is made."""
    mark = {"ok": "ok  ", "note": "note", "fix": "FIX "}[finding.verdict]
    write(f"{mark}  {finding.what}: {finding.text}")
    sys.stdout.flush()
