"""``geta compare``: several methods on one task under one budget, and the table that stands them side by side.

Every method trains with the same data, seeds, steps, optimizer and learning rates, and is tuned with the same number
of trials. With ``match=bits`` ``prune_then_ptq`` and ``qat_only`` get the bit widths that GETA ended with (its
averages, rounded up), and ``prune_then_ptq`` its sparsity; with ``match=bops`` every method that has the knob gets
GETA's relative BOPs, seed by seed, so that the rows differ in the method alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from baselines.matching import KEY
from baselines.registry import METHODS as KNOWN
from baselines.schema import Bounds, check_value, options_of
from geta_core.errors import ConfigError, GetaError
from orchestration.compose import compose
from orchestration.config import Config
from orchestration.console import guarded, write
from orchestration.result import RunResult
from orchestration.rundir import DEFAULT_ROOT, RunDirectory
from orchestration.values import parse_value
from sweeps import tuning
from sweeps.comparison import Comparison, print_comparison, save_record
from sweeps.layout import layout, write_statistics

METHODS = ("dense", "geta", "qat_only", "prune_then_ptq")
REFERENCE = "geta"
Match = Literal["bits", "bops", "nothing"]

HELP = """\
usage: geta compare [methods=[dense,geta,...]] [seeds=[0,1,...]] [match=bits|bops|nothing] [tune=N] [output=DIR]
                    [record=FILE] [study=NAME] [group=NAME ...] [group.key=VALUE ...]

Run several methods under one budget and print the table: means, standard deviations, and the paired differences to
GETA with 95 % intervals corrected for their number (Holm).

  methods   what is compared (default [dense,geta,qat_only,prune_then_ptq]); all: every method there is
  seeds     every method runs with each of them (default [0])
  match     what the others take from GETA's result of the same seed: bits (default) for qat_only and prune_then_ptq;
            bops for every method that has the knob method.match_bops; or nothing
  tune      trials per method, its defaults among them, judged on the validation split (default 1: the defaults)
  output    folder that receives the runs (default runs)
  record    JSON file that receives every result
  study     MLflow experiment of the runs (default compare-TASK); each method is a parent run with its seeds as
            children, and holds mean, standard deviation and 95 % confidence interval of their final numbers

All other values are those of `geta run` and hold for every method; METHOD:key=value holds for one of them, such as
geta:method.sparsity=0.6. Runs that are complete are not run again; interrupted ones go on.
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared.

    Attributes:
        methods: as ``method=``.
        seeds: of the runs.
        output: folder that receives one run directory per method and seed, and the MLflow store.
        match: what the others take from GETA's result of the same seed.
        trials: of tuning, per method.
        values: ``group=name`` and ``group.key=value`` for every run, ``method:key=value`` for one method.
        study: MLflow experiment of the runs; None is "compare-TASK", or what ``tracker.experiment`` says.
    """

    methods: Sequence[str]
    seeds: Sequence[int]
    output: Path
    match: Match = "bits"
    trials: int = 1
    values: Sequence[str] = field(default_factory=tuple)
    study: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run a comparison from the command line."""
    if any(each in ("-h", "--help") for each in arguments):
        write(HELP)
        return 0
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    plan, record = _read(arguments)
    found = compare(plan)
    if not any(found.results.values()):
        raise GetaError("no run came to its end: " + "; ".join(f"{k}: {v}" for k, v in found.failures.items()))
    print_comparison(found, f"{found.task}, {len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}, equal steps")
    if record is not None:
        save_record(found, Path(record))
    write(f"each run is a folder in {plan.output}; compare them in the browser: make ui, or geta ui {plan.output}")
    return 0


def _read(arguments: Sequence[str]) -> tuple[Plan, str | None]:
    faults: list[str] = []
    own: dict[str, Any] = {
        "methods": list(METHODS),
        "seeds": [0],
        "output": DEFAULT_ROOT,
        "match": "bits",
        "tune": 1,
        "record": None,
        "study": None,
    }
    values = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key in own:
            own[key] = parse_value(text, key, faults)
        else:
            values.append(argument)
    methods = KNOWN.names() if own["methods"] == "all" else _listed(own["methods"])
    methods = check_value(methods, list[str], "methods", faults)
    seeds = check_value(_listed(own["seeds"]), list[Annotated[int, Bounds(0)]], "seeds", faults)
    output = check_value(own["output"], str, "output", faults)
    match = check_value(own["match"], Match, "match", faults)
    trials = check_value(own["tune"], Annotated[int, Bounds(1)], "tune", faults)
    record = check_value(own["record"], str | None, "record", faults)
    study = check_value(own["study"], str | None, "study", faults)
    if not faults and not (methods and seeds):
        faults.append("methods and seeds must each name at least one")
    if not faults and tuning.SEED in seeds and trials > 1:
        faults.append(f"seeds must not hold {tuning.SEED}, which is the seed of tuning")
    if faults:
        raise ConfigError(faults)
    place = Path(output)
    return Plan(
        methods=methods, seeds=seeds, output=place, match=match, trials=trials, values=values, study=study
    ), record


def _listed(value: Any) -> Any:
    """Accept "a,b" and a single value for a list."""
    if isinstance(value, str):
        return [int(part) if part.strip().isdigit() else part.strip() for part in value.split(",")]
    return value if isinstance(value, list) else [value]


def compare(plan: Plan) -> Comparison:
    """Tune every method, and run it with every seed; what is already complete in the output is not run again.

    A method whose run cannot reach what it is to match, or whose training fails, stands in the result with the reason.
    """
    from orchestration.run import run

    # All configurations are checked before the first run starts.
    places = {m: layout(_config(plan, m, plan.seeds[0], ()), plan.values, plan.study) for m in plan.methods}
    for method in plan.methods:
        for seed in plan.seeds:
            _config(plan, method, seed, places[method])
    found = Comparison(reference=REFERENCE, trials=plan.trials)
    chosen: dict[str, tuple[str, ...]] = {}
    # GETA goes first, because others are given what it ended with.
    methods = sorted(plan.methods, key=lambda name: name != REFERENCE)
    for method in methods:
        chosen[method] = _tuned(plan, method, found) if plan.trials > 1 else ()
    for seed in plan.seeds:
        ended: tuple[Config, RunResult] | None = None
        for method in methods:
            keys = (*places[method], *_matched(plan, method, ended), *chosen[method])
            config = _config(plan, method, seed, keys)
            write(f"{method}, seed {seed}")
            try:
                result = run(config)
            except GetaError as error:
                found.failures[method] = str(error)
                write(f"{method}, seed {seed}: {error}")
                continue
            found.results.setdefault(method, {})[seed] = result
            if method == REFERENCE:
                ended = (config, result)
            elif ended is not None and plan.match == "bops" and _has_knob(method):
                found.targets.setdefault(method, {})[seed] = ended[1].relative_bops
    found.results = {method: found.results[method] for method in plan.methods if method in found.results}
    write_statistics([Path(result.directory) for own in found.results.values() for result in own.values()])
    return found


def _tuned(plan: Plan, method: str, found: Comparison) -> tuple[str, ...]:
    """Return the keys of a method's best trial; GETA's own gives what the others match."""
    from orchestration.run import run

    reference = found.tuned.get(REFERENCE)
    best = None if reference is None or reference.result is None else reference.result
    base = _config(plan, method, tuning.SEED, ())
    ended = None if best is None else (_config(plan, REFERENCE, tuning.SEED, reference.keys if reference else ()), best)
    place = layout(base, plan.values, plan.study)
    matched = (*place, 'tracker.cell="tuning"', *_matched(plan, method, ended))

    def trial(number: int, keys: Sequence[str]) -> RunResult:
        write(f"{method}, trial {number}: {' '.join(keys) or 'defaults'}")
        config = _config(plan, method, tuning.SEED, (*matched, *keys))
        place = plan.output / "tuning" / f"{method}-{number}"
        return run(replace(config, run=replace(config.run, output=str(place))))

    trials = tuning.tune(plan.trials, tuning.space_of(method, base), trial)
    best_trial = max(trials, key=lambda each: each.score)
    found.tuned[method] = best_trial
    return best_trial.keys


def _config(plan: Plan, method: str, seed: int, keys: Sequence[str]) -> Config:
    """Return the configuration of a run; what the user says wins over what is matched or tuned."""
    own = []
    for value in plan.values:
        owner, colon, rest = value.partition(":")
        if not colon or "=" in owner or "." in owner:
            own.append(value)
        elif owner == method:
            own.append(rest)
    said = {value.partition("=")[0] for value in own}
    free = [key for key in keys if key.partition("=")[0] not in said]
    config = compose([f"method={method}", f"run.seed={seed}", *free, *own])
    place = plan.output / RunDirectory.of(config).path.name
    return replace(config, run=replace(config.run, output=str(place)))


def _has_knob(method: str) -> bool:
    return KEY in options_of(KNOWN.resolve(method))


def _matched(plan: Plan, method: str, ended: tuple[Config, RunResult] | None) -> list[str]:
    """Return the keys that give a method what GETA ended with."""
    if ended is None or method == REFERENCE or plan.match == "nothing":
        return []
    config, result = ended
    if plan.match == "bops":
        return [f"method.{KEY}={result.relative_bops:.6g}"] if _has_knob(method) else []
    if method not in ("qat_only", "prune_then_ptq"):
        return []
    asked: dict[str, Any] = config.flat()
    inputs = "null" if asked["method.activation_bits"] is None else math.ceil(result.activation_bits)
    keys = [f"method.weight_bits={math.ceil(result.weight_bits)}", f"method.activation_bits={inputs}"]
    return [*keys, f"method.sparsity={asked['method.sparsity']}"] if method == "prune_then_ptq" else keys
