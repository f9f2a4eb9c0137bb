"""``geta compare``: several methods on one task under one budget, and the table that stands them side by side.

Every method trains with the same data, seeds, steps, optimizer and learning rates. ``prune_then_ptq`` and ``qat_only``
get the bit widths that GETA ended with (its averages, rounded up), and ``prune_then_ptq`` its sparsity, so that the
rows differ in the method alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from baselines.schema import Bounds, check_value
from geta_core.errors import ConfigError
from orchestration.compose import compose
from orchestration.config import Config
from orchestration.console import guarded, table, write
from orchestration.result import RunResult
from orchestration.rundir import DEFAULT_ROOT, RunDirectory
from orchestration.values import parse_value

METHODS = ("dense", "geta", "qat_only", "prune_then_ptq")
COLUMNS: dict[str, Callable[[RunResult], float]] = {
    "test accuracy %": lambda result: 100 * result.accuracy,
    "group sparsity %": lambda result: 100 * result.group_sparsity,
    "weight bits": lambda result: result.weight_bits,
    "input bits": lambda result: result.activation_bits,
    "rel. BOPs %": lambda result: 100 * result.relative_bops,
    "bytes": lambda result: result.bytes,
    "ms per image": lambda result: result.latency_ms,
}


HELP = """\
usage: geta compare [methods=[dense,geta,...]] [seeds=[0,1,...]] [output=DIR] [group=NAME ...] [group.key=VALUE ...]

Run several methods under one budget and print the table.

  methods   what is compared (default [dense,geta,qat_only,prune_then_ptq])
  seeds     every method runs with each of them (default [0])
  output    folder that receives the runs (default runs)

All other values are those of `geta run` and hold for every method; METHOD:key=value holds for one of them, such as
geta:method.sparsity=0.6. Runs that are complete are not run again; interrupted ones go on.
"""


def main(arguments: Sequence[str]) -> int:
    """Run a comparison from the command line."""
    if any(each in ("-h", "--help") for each in arguments):
        write(HELP)
        return 0
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    faults: list[str] = []
    own: dict[str, Any] = {"methods": list(METHODS), "seeds": [0], "output": DEFAULT_ROOT}
    values = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key in own:
            own[key] = parse_value(text, key, faults)
        else:
            values.append(argument)
    methods = check_value(_listed(own["methods"]), list[str], "methods", faults)
    seeds = check_value(_listed(own["seeds"]), list[Annotated[int, Bounds(0)]], "seeds", faults)
    output = check_value(own["output"], str, "output", faults)
    if not faults and not (methods and seeds):
        faults.append("methods and seeds must each name at least one")
    if faults:
        raise ConfigError(faults)
    results = compare(methods, seeds, Path(output), values)
    task = next(iter(results.values()))[0].task
    print_table(results, f"{task}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, equal steps")
    write(f"each run is a folder in {output}; compare them in the browser: make ui, or geta ui {output}")
    return 0


def _listed(value: Any) -> Any:
    """Accept "a,b" and a single value for a list."""
    if isinstance(value, str):
        return [int(part) if part.strip().isdigit() else part.strip() for part in value.split(",")]
    return value if isinstance(value, list) else [value]


def compare(
    methods: Sequence[str], seeds: Sequence[int], output: Path, values: Sequence[str] = ()
) -> dict[str, list[RunResult]]:
    """Run every method with every seed; what is already complete in ``output`` is not run again.

    Args:
        methods: as ``method=``.
        seeds: of the runs.
        output: folder that receives one run directory per method and seed, and the MLflow store.
        values: ``group=name`` and ``group.key=value`` for every run, ``method:key=value`` for one method.

    Returns:
        Results by method, in the order of the seeds.
    """
    from orchestration.run import run

    # All configurations are checked before the first run starts.
    for method in methods:
        for seed in seeds:
            _config(method, seed, output, values)
    results: dict[str, list[RunResult]] = {method: [] for method in methods}
    for seed in seeds:
        reference: tuple[Config, RunResult] | None = None
        # GETA goes first, because others are given what it ended with.
        for method in sorted(methods, key=lambda name: name != "geta"):
            config = _config(method, seed, output, [*_matched(method, reference), *values])
            write(f"{method}, seed {seed}")
            result = run(config)
            results[method].append(result)
            if method == "geta":
                reference = (config, result)
    return results


def print_table(results: dict[str, list[RunResult]], title: str) -> None:
    """Print one row per method: means, and standard deviations where there are several seeds."""
    rows = [
        [method, *(_cell([read(each) for each in found]) for read in COLUMNS.values())]
        for method, found in results.items()
    ]
    table(title, ["method", *COLUMNS], rows)


def _config(method: str, seed: int, output: Path, values: Sequence[str]) -> Config:
    chosen = [f"method={method}", f"run.seed={seed}"]
    for value in values:
        owner, colon, rest = value.partition(":")
        if not colon or "=" in owner or "." in owner:
            chosen.append(value)
        elif owner == method:
            chosen.append(rest)
    config = compose(chosen)
    place = output / RunDirectory.of(config).path.name
    return replace(config, run=replace(config.run, output=str(place)))


def _matched(method: str, reference: tuple[Config, RunResult] | None) -> list[str]:
    """Return the keys that give a method GETA's final bit widths, and its sparsity where it prunes."""
    if reference is None or method not in ("qat_only", "prune_then_ptq"):
        return []
    config, result = reference
    asked: dict[str, Any] = config.flat()
    inputs = "null" if asked["method.activation_bits"] is None else math.ceil(result.activation_bits)
    keys = [f"method.weight_bits={math.ceil(result.weight_bits)}", f"method.activation_bits={inputs}"]
    return [*keys, f"method.sparsity={asked['method.sparsity']}"] if method == "prune_then_ptq" else keys


def _cell(values: Sequence[float]) -> str:
    digits = 0 if min(values) >= 1000 else 2
    text = f"{statistics.fmean(values):,.{digits}f}"
    return f"{text} ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else text
