"""``geta services``: PostgreSQL and an MLflow server for a team."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from baselines.schema import describe, options_of
from orchestration.console import Parser, guarded, write
from orchestration.services.settings import FILE, ServicesSettings, read_settings

DOWN = 1
"""Exit code of `status` when something does not run."""
DESCRIPTION = f"""\
Bring up, end or look at a PostgreSQL server and an MLflow server that keeps its numbers in it. Both listen on loopback
alone; `up` starts what is down and can be given again at any time. Settings come from {FILE} and from
services.key=value. PostgreSQL refuses to run as root: given by root, it runs as services.system_user.
"""


def main(arguments: Sequence[str]) -> int:
    """Act on the services from the command line."""
    keys = "\n".join(
        f"  services.{option.name} = {'null' if option.default is None else option.default}   "
        f"({describe(option.annotation)})\n      {option.doc}"
        for option in options_of(ServicesSettings).values()
    )
    parser = Parser(
        "geta services", description=DESCRIPTION, epilog=f"keys:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--config", help=f"file of settings (default: {FILE}, where it exists)")
    parser.add_argument("values", nargs="*", metavar="services.key=value")
    given = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _act(given.action, read_settings(given.values, given.config)))


def _act(action: str, settings: ServicesSettings) -> int:
    from orchestration.services.team import Team

    team = Team(settings)
    if action == "up":
        started = team.up()
        write(f"{' and '.join(started)} started" if started else "everything was up")
        write(f"MLflow: {settings.address}   use it with tracker.uri={settings.address}")
        write(f"logs and data: {settings.path}")
        return 0
    if action == "down":
        stopped = team.down()
        write(f"{' and '.join(stopped)} stopped" if stopped else "nothing was up")
        return 0
    state = team.state()
    write(f"PostgreSQL: {'up' if state.postgres else 'down'}   port {settings.postgres_port}, {settings.path}")
    process = f"process {state.pid}, " if state.pid else ""
    write(f"MLflow: {'up' if state.mlflow else 'down'}   {process}{settings.address}")
    return 0 if state.postgres and state.mlflow else DOWN
