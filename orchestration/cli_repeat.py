"""``geta repeat``: run the configuration of a run directory again, and compare the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geta_core.errors import ConfigError
from orchestration.config import Config
from orchestration.console import Parser, complain, guarded, write
from orchestration.result import RunResult
from orchestration.rundir import SHOWN, RunDirectory, differences
from orchestration.values import read_yaml

DIFFERENT = 1
"""Exit code when the same configuration gave other numbers."""
NUMBERS = (
    "metrics",
    "group_sparsity",
    "weight_bits",
    "activation_bits",
    "relative_bops",
    "parameters",
    "bytes",
    "layers",
)
"""Fields of a result that the clock does not touch."""
DESCRIPTION = """\
Run the configuration of a run directory again, in a new directory beside it (NAME-repeat) or in run.output. Keys may be
changed. Says what differs in code and versions; where no deciding key was changed the numbers are compared.
"""


def main(arguments: Sequence[str]) -> int:
    """Repeat a run from the command line."""
    parser = Parser("geta repeat", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("directory", help="run directory")
    parser.add_argument("values", nargs="*", metavar="group.key=VALUE", help="what is to be different")
    given = parser.parse_intermixed_args(arguments)
    return guarded(lambda: repeat(Path(given.directory), given.values))


def repeat(directory: Path, values: Sequence[str]) -> int:
    """Run again and compare.

    Args:
        directory: of the run.
        values: ``group=choice`` and ``group.key=value`` that replace its own.

    Returns:
        The exit code: 1 when the same configuration gave other numbers.

    Raises:
        ConfigError: when the directory holds no run, or the values do not fit.
    """
    from orchestration.cli_run import summarize
    from orchestration.run import run

    first = RunDirectory(directory)
    if not first.resolved.is_file():
        raise ConfigError([f"{directory} is no run directory: it holds no {first.resolved.name}"])
    config = repeated_config(first, values)
    for line in surroundings(first, config):
        write(line)
    result = run(config)
    summarize(result, config)
    changed = differences(Config.from_dict(read_yaml(first.resolved)).deciding(), config.deciding())
    if changed:
        write(f"changed: {'; '.join(changed)}")
        return 0
    if not first.result.is_file():
        write(f"{directory} has no result to compare with")
        return 0
    different = list(compare(RunResult.load(first.result), result))
    if different:
        more = "; ..." if len(different) > SHOWN else ""
        complain(f"other numbers than {directory}: {'; '.join(different[:SHOWN])}{more}")
        return DIFFERENT
    write(f"the same numbers as {directory}, bit for bit")
    return 0


def repeated_config(first: RunDirectory, values: Sequence[str]) -> Config:
    """Return the configuration of a run with other values and a directory of its own."""
    from orchestration.compose import trace_load

    composition = trace_load(first.resolved, ["run.resume=auto", *values])
    config = composition.config
    if any(value.partition("=")[0] == "run.output" for value in values):
        return config
    return replace(config, run=replace(config.run, output=str(_free_name(first.path))))


def _free_name(path: Path) -> Path:
    """Return the first name beside a run that is new, or that of a repetition which was not finished."""
    number = 1
    while True:
        candidate = path.with_name(f"{path.name}-repeat" + (f"-{number}" if number > 1 else ""))
        if not RunDirectory(candidate).result.is_file():
            return candidate
        number += 1


def surroundings(first: RunDirectory, config: Config) -> Iterator[str]:
    """Say what differs between the run's surroundings and the present ones."""
    from orchestration.records import code_state, versions

    attempts = first.attempts()
    before: Mapping[str, Any] = attempts[-1] if attempts else {}
    code = {"was": before.get("code") or {}, "is": code_state() or {}}
    commits = {when: state.get("commit", "not under git") for when, state in code.items()}
    if commits["was"] != commits["is"]:
        yield f"note: the code was {commits['was']} and is {commits['is']}"
    for when, state in code.items():
        if state.get("modified"):
            yield f"note: the code {when} modified since its commit"
    now = versions()
    for name, version in (before.get("versions") or {}).items():
        if now.get(name) != version:
            yield f"note: {name} was {version}, it is {now.get(name, 'not installed')}"
    if config.run.device == "auto" and before.get("device"):
        yield f"note: the run computed on {before['device']}"


def compare(first: RunResult, second: RunResult) -> Iterator[str]:
    """Name the numbers in which two results differ, by any bit."""
    for name in NUMBERS:
        then, now = getattr(first, name), getattr(second, name)
        if isinstance(then, Mapping):
            for key in sorted({*then, *now}):
                if not _same(then.get(key), now.get(key)):
                    yield f"{key} {then.get(key)} -> {now.get(key)}"
        elif isinstance(then, list):
            if not _same(then, now):
                yield f"{name} differ"
        elif not _same(then, now):
            yield f"{name} {then} -> {now}"


def _same(then: Any, now: Any) -> bool:
    return json.dumps(then, sort_keys=True) == json.dumps(now, sort_keys=True)  # as written: a NaN equals itself
