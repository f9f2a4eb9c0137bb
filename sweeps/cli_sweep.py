"""``geta sweep``: studies from the command line."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from baselines.schema import describe, options_of
from geta_core.errors import ConfigError
from orchestration.console import guarded, table, write
from orchestration.rundir import DEFAULT_ROOT
from orchestration.values import parse_value
from sweeps.studies.settings import Given, SweepSettings
from sweeps.studies.study import Cell, Study, StudyTrial, cells_of, draw, front

USAGE = """\
usage: geta sweep study=NAME [sweep.key=VALUE ...] [launcher=local|ray|slurm] [group.key=VALUE ...]
                  [METHOD:group.key=VALUE ...]
       geta sweep --status NAME

Run many settings of one or several methods under one coordinator: it asks a sampler for settings, starts runs through
the launcher, and tells what they gave. Every method gets the same budget. The same command goes on after any
interruption, kill -9 of any process included; `geta sweep study=NAME` alone goes on with what is saved. NAME may be a
file NAME.yaml that holds `sweep:` and `values:`; the study "digits" comes with this program.

  --status NAME   show how far a study is, and what it found

All other values are those of `geta run` and hold for every run; METHOD:group.key=VALUE holds for one method.
"""
EXAMPLES = """\
examples:
  geta sweep study=digits sweep.parallel=2
  geta sweep study=mine task=digits 'sweep.methods=[geta,djpq]' sweep.trials=8 'sweep.seeds=[0,1]' sweep.parallel=4
  geta sweep study=small task=digits sweep.objective=accuracy sweep.max_bops=0.01 sweep.stopping=median \\
      'sweep.space={method.sparsity: {low: 0.3, high: 0.8}}'
  geta sweep study=team launcher=slurm sweep.parallel=32 sweep.storage=postgresql://geta@db.example:5432/optuna
  geta sweep --status mine

The runs of a setting are children of one MLflow run that holds their means: geta ui runs/NAME. Optuna's dashboard reads
the same storage: optuna-dashboard sqlite:///runs/NAME/study.db (pip install geta[dashboard]).
"""


def main(arguments: Sequence[str]) -> int:
    """Run a study, or say how far one is, from the command line."""
    if any(each in ("-h", "--help") for each in arguments):
        write(help_text())
        return 0
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    given, status = read(arguments)
    if status:
        output = given.sweep.get("output") or Path(DEFAULT_ROOT) / given.name
        return _status(Study.open(output))
    study = Study(given.name, given.values, **given.sweep)
    if study.definition.settings.coordinator == "slurm":
        from sweeps.studies.coordinator_job import submit_coordinator

        job = submit_coordinator(study, given)
        write(f"coordinator submitted as job {job}; study folder: {study.folder}")
        write(f"  geta sweep --status {shlex.quote(study.definition.name)}")
        return 0
    trials = study.run()
    summarize(study, trials)
    drawn = draw(trials, study.folder / "trade_off.png")
    if drawn is not None:
        write(f"picture: {drawn}")
    return 0


def read(arguments: Sequence[str]) -> tuple[Given, bool]:
    """Sort what a command line says.

    Raises:
        ConfigError: naming every fault.
    """
    faults: list[str] = []
    name, status, sweep, values = "", False, {}, []
    rest = iter(arguments)
    for argument in rest:
        key, equals, text = argument.partition("=")
        if argument == "--status":
            status, name = True, next(rest, "")
        elif argument.startswith("-"):
            faults.append(f"unknown option {argument}; geta sweep takes --status NAME and key=value")
        elif not equals:
            faults.append(f"{argument!r} must have the form key=value, such as sweep.parallel=4")
        elif key == "study":
            name = text
        elif key.startswith("sweep."):
            sweep[key.removeprefix("sweep.")] = parse_value(text, key, faults)
        else:
            values.append(argument)
    if not name:
        faults.append("study=NAME must be given")
    if faults:
        raise ConfigError(faults)
    return Given(name, sweep, tuple(values)), status


def summarize(study: Study, trials: Sequence[StudyTrial]) -> None:
    """Print what a study found."""
    cells = cells_of(trials)
    best = front(cells, study.definition)
    rows = [_row(cell, cell in best) for cell in sorted(cells, key=lambda cell: (cell.method, cell.setting))]
    objective = study.definition.settings.objective
    columns = ["method", "setting", "seeds", "val %", "test %", "rel. BOPs %", "W / A bits", "bytes", "searched"]
    table(f"{study.definition.name}: {study.definition.budget()}", columns, rows, texts=(8,))
    marked = "no other setting beats it in both objectives" if objective == "pareto" else "the best feasible setting"
    write(f"*: {marked}, by the mean over the seeds; the test split decides nothing")
    seconds = _seconds(trials)
    write("training time: " + ", ".join(f"{method} {spent:,.0f} s" for method, spent in seconds.items()))
    for trial in trials:
        if trial.state in ("failed", "pruned"):
            write(f"{trial.directory.name}: {trial.state}: {trial.about.get('reason', '')}")
    write(f"study folder: {study.folder}   in the browser: geta ui {study.folder}")


def _row(cell: Cell, best: bool) -> list[str]:
    done = [trial.about for trial in cell.trials if trial.state == "complete"]

    def mean(name: str) -> float:
        found = [each[name] for each in done if name in each]
        return sum(found) / len(found) if found else float("nan")

    searched = ", ".join(f"{key}={_short(value)}" for key, value in cell.params.items()) or "defaults"
    bits = f"{mean('weight_bits'):.2f} / {mean('activation_bits'):.2f}"
    return [
        cell.method + ("*" if best else ""),
        str(cell.setting),
        f"{len(done)} of {len(cell.trials)}",
        f"{100 * mean('val/accuracy'):.2f}",
        f"{100 * mean('test/accuracy'):.2f}",
        f"{100 * mean('relative_bops'):.2f}",
        bits,
        f"{mean('bytes'):,.0f}",
        searched,
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seconds(trials: Sequence[StudyTrial]) -> dict[str, float]:
    """Return method -> seconds of training, failed and stopped runs not counted."""
    found: dict[str, float] = {}
    for trial in trials:
        if trial.state == "complete":
            found[trial.method] = found.get(trial.method, 0.0) + trial.result.seconds["train"]
    return found


def _status(study: Study) -> int:
    trials = study.trials()
    counts = {
        state: sum(trial.state == state for trial in trials) for state in ("complete", "pruned", "failed", "running")
    }
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "nothing begun"
    who = "a coordinator runs" if study.coordinated else "no coordinator runs; the same command goes on"
    write(f"{study.definition.name}: {shown} of {study.definition.size}; {who}")
    for trial in trials:
        if trial.state == "running":
            write(f"  running: {trial.directory}")
    if counts["complete"]:
        summarize(study, trials)
    return 0


def help_text() -> str:
    """Explain the command and its keys."""
    lines = [*USAGE.splitlines(), "", "keys of the study:"]
    for option in options_of(SweepSettings).values():
        lines += _entry(option.name, describe(option.annotation), option.default, option.doc)
    return "\n".join([*lines, "", EXAMPLES])


def _entry(name: str, kind: str, default: Any, doc: str) -> Iterator[str]:
    plain = {None: "null", True: "true", False: "false"}
    text = plain[default] if default is None or isinstance(default, bool) else str(default)
    if isinstance(default, tuple):
        text = "[" + ",".join(map(str, default)) + "]"
    yield f"  sweep.{name} = {text}   ({kind})"
    yield from textwrap.wrap(doc, 110, initial_indent="      ", subsequent_indent="      ")
