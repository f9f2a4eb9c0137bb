"""The same study under several launchers: ``python -m tests.sweeps.launchers local=FOLDER ray=FOLDER slurm=FOLDER``.

Every trial must have the same setting, the same values and the same numbers, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestration.console import write
from orchestration.files import write_text
from sweeps.pages import LAUNCHERS
from sweeps.studies.study import Study, StudyTrial
from tests.benchmarks.origin import origin

SAME = ("test/accuracy", "weight_bits", "activation_bits", "group_sparsity", "bytes")
"""Numbers beside the objectives that must be equal too."""


def row_of(trial: StudyTrial) -> dict[str, Any]:
    """Return what must not depend on where a trial ran."""
    found = {key: getattr(trial, key) for key in ("number", "method", "setting", "seed", "state")}
    numbers = {key: trial.about[key] for key in SAME if key in trial.about}
    return {**found, "params": dict(trial.params), "values": list(trial.values), **numbers}


def differences(studies: Mapping[str, Sequence[StudyTrial]]) -> list[str]:
    """Say what differs between the first study and each other one."""
    (first, reference), *others = studies.items()
    found = []
    for name, trials in others:
        if len(trials) != len(reference):
            found.append(f"{name} has {len(trials)} trials, {first} has {len(reference)}")
        for mine, other in zip(map(row_of, reference), map(row_of, trials), strict=False):
            keys = [key for key in mine if mine[key] != other.get(key)]
            found += [f"trial {mine['number']}: {key}: {first} {mine[key]}, {name} {other.get(key)}" for key in keys]
    return found


def about(folder: str, trials: Sequence[StudyTrial]) -> dict[str, Any]:
    """Return where a study came from, and what its runs took."""
    results = [trial.result for trial in trials if trial.state == "complete"]
    jobs = sorted({each.environment["slurm"]["job"] for each in results if each.environment.get("slurm")})
    given = yaml.safe_load((Path(folder) / "study.yaml").read_text(encoding="utf-8"))
    return {
        "study": given["study"],
        "values": given["values"],
        "commits": sorted({each.environment["code"]["commit"] for each in results}),
        "modified": any(each.environment["code"]["modified"] for each in results),
        "training_seconds": round(sum(each.seconds["train"] for each in results), 1),
        "total_seconds": round(sum(each.seconds["total"] for each in results), 1),
        **({"slurm_jobs": jobs} if jobs else {}),
    }


def main(given: Sequence[str] | None = None) -> int:
    """Compare, print and record; return 1 where anything differs."""
    parser = argparse.ArgumentParser("python -m tests.sweeps.launchers", description=__doc__)
    parser.add_argument("studies", nargs="+", metavar="LAUNCHER=FOLDER")
    parser.add_argument("--json", type=Path, help="write the record here")
    arguments = parser.parse_args(given)
    folders = dict(each.split("=", 1) for each in arguments.studies)
    studies = {name: Study.open(folder).trials() for name, folder in folders.items()}
    faults = differences(studies)
    for fault in faults:
        write(fault)
    rows = [row_of(trial) for trial in next(iter(studies.values()))]
    complete = sum(row["state"] == "complete" for row in rows)
    write(f"{len(rows)} trials, {complete} complete, under {', '.join(studies)}: {len(faults)} differences")
    if arguments.json:
        record = {
            "kind": LAUNCHERS,
            "environment": origin("cpu"),
            "launchers": {name: about(folders[name], trials) for name, trials in studies.items()},
            "differences": len(faults),
            "trials": rows,
        }
        write_text(arguments.json, json.dumps(record, indent=1) + "\n")
    return 1 if faults or complete < len(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
