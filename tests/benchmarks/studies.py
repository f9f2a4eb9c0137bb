"""What a study costs besides its runs: the coordinator's time per trial, with a SQLite file and runs that end at once.

``python -m tests.benchmarks.studies`` measures 1,000 and 10,000 trials.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.bounds import Row, bound_of, row
from tests.benchmarks.clock import Spread
from tests.benchmarks.origin import origin
from tests.sweeps.noop import coordinate, make


def measure(trials: int, sampler: str, parallel: int = 8) -> dict[str, Any]:
    """Run a study of runs that end at once.

    Returns:
        Seconds per trial: of everything but the sampler, and of the sampler.
    """
    with tempfile.TemporaryDirectory() as name:
        study = make(Path(name) / "study", trials=trials, sampler=sampler, parallel=parallel, objective="accuracy")
        began = time.perf_counter()
        made = coordinate(study)
        seconds = time.perf_counter() - began
        states = {trial.state for trial in study.trials()}
        assert states == {"complete"} and len(study.trials()) == trials
    own = (seconds - made.sampler_seconds) / trials
    return {"trials": trials, "sampler": sampler, "coordinator_s": own, "sampler_s": made.sampler_seconds / trials}


def name_of(trials: int) -> str:
    """Return by which name a study's bound is known."""
    return f"{trials:,} trials"


def study_rows() -> Iterator[Row]:
    """Measure 1,000 trials with TPE, the usual sampler, and 10,000 at random, as TPE alone would take minutes."""
    for trials, sampler in ((1_000, "tpe"), (10_000, "random")):
        found = measure(trials, sampler)
        note = (
            f"coordinator {1e3 * found['coordinator_s']:.1f} ms; sampler ({sampler}) {1e3 * found['sampler_s']:.1f} ms"
        )
        spread = Spread.of([found["coordinator_s"]])
        text = "coordinator without sampler, per trial, wall"
        yield row("study", name_of(trials), text, spread, device="cpu", unit="s", note=note)


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if a bound is missed."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.studies", description=__doc__)
    parser.add_argument("--trials", default="1000,10000", help="comma-separated numbers of trials")
    parser.add_argument("--samplers", default="tpe,random", help="comma-separated")
    parser.add_argument("--json", type=Path, help="write the record here")
    arguments = parser.parse_args(given)
    rows, missed = [], False
    for trials in map(int, arguments.trials.split(",")):
        for sampler in arguments.samplers.split(","):
            found = measure(trials, sampler)
            bound = bound_of("study", name_of(trials), "cpu")
            verdict = "" if bound is None else "PASS" if found["coordinator_s"] <= bound else "FAIL"
            missed = missed or verdict == "FAIL"
            rows.append({**found, "bound_s": bound, "verdict": verdict})
            own, asked = 1e3 * found["coordinator_s"], 1e3 * found["sampler_s"]
            beside = f" (bound {1e3 * bound:g} ms) {verdict}" if bound else ""
            print(
                f"{trials:>6} trials, {sampler:<7} per trial: coordinator {own:.2f} ms{beside}, sampler {asked:.2f} ms",
                flush=True,
            )
    if arguments.json:
        record = {"environment": origin(), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
