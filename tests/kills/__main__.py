"""``python -m tests.kills``: every disturbance a number of times at drawn moments, and the table of what came of it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from orchestration.cli_services import main as services
from tests.benchmarks.origin import origin
from tests.kills.trials import (
    DISK,
    KINDS,
    PROCESSES,
    RAY,
    SERVERS,
    Reference,
    Trial,
    end_of_process,
    end_of_server,
    full_disk,
    team_arguments,
    tried,
    undisturbed,
)


def trials(kinds: Sequence[str], times: int, folder: Path, stack: ExitStack) -> Iterator[Trial]:
    """Do what was asked for, one after another."""
    known: dict[str, Reference] = {}
    team: list[str] = []
    for kind in kinds:
        launcher = "ray" if kind in PROCESSES else "local"
        if launcher not in known:
            known[launcher] = undisturbed(folder / launcher, dict(RAY) if launcher == "ray" else None)
        if kind in SERVERS and not team:
            team = team_arguments(folder)
            stack.callback(services, ["down", *team])
            if services(["up", *team]):
                raise RuntimeError("the services did not come up")
        act: Callable[..., None] = full_disk if kind == DISK else end_of_process
        if kind in SERVERS:
            act = partial(end_of_server, team=team)
        for number in range(times):
            yield tried(folder, Trial(kind, number), partial(act, reference=known[launcher]))


def table(found: Sequence[Trial]) -> str:
    """Return the outcomes in Markdown."""
    lines = ["| disturbed | times | at step | ended with equal bits, each number once | what was needed |", "|---|" * 5]
    for kind in dict.fromkeys(trial.kind for trial in found):
        own = [trial for trial in found if trial.kind == kind]
        steps = ", ".join(str(trial.step) for trial in own)
        good = sum(not trial.faults for trial in own)
        needed = ", or ".join(dict.fromkeys(trial.needed for trial in own))
        lines.append(f"| {kind} | {len(own)} | {steps} | {good} of {len(own)} | {needed} |")
    return "\n".join(lines).replace("|---||---||---||---||---|", "|---|---|---|---|---|")


def main(given: Sequence[str] | None = None) -> int:
    """Disturb, print and record; return 1 if anything was lost, doubled or left."""
    parser = argparse.ArgumentParser("python -m tests.kills", description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated, of: %(default)s")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--record", type=Path, help="write the outcomes here")
    arguments = parser.parse_args(given)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    folder = Path(tempfile.mkdtemp(prefix="geta-kills-"))
    folder.chmod(0o755)  # PostgreSQL's user has to enter it
    found: list[Trial] = []
    began = time.monotonic()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for trial in trials(arguments.kinds.split(","), arguments.times, folder, stack):
            found.append(trial)
            sys.stdout.write(
                f"{trial.kind} {trial.number}: after {trial.moment:.1f} s, at step {trial.step}, "
                f"{trial.seconds:.0f} s in all: {'; '.join(trial.faults) or 'as if nothing had happened'}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(table(found) + "\n")
    if arguments.record is not None:
        record = {
            "environment": origin("cpu"),
            "seconds": round(time.monotonic() - began, 1),
            "trials": [asdict(trial) for trial in found],
        }
        arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any(trial.faults for trial in found))


if __name__ == "__main__":
    sys.exit(main())
