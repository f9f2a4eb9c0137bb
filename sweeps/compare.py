"""``geta compare``: several methods on one task under one budget, and the table that stands them side by side.

Every method trains with the same data, seeds, steps, optimizer and learning rates, and is tuned with the same number
of trials. With ``match=bits`` ``prune_then_ptq`` and ``qat_only`` get the bit widths that GETA ended with (its
averages, rounded up), and ``prune_then_ptq`` its sparsity; with ``match=bops`` every method that has the knob gets
GETA's relative BOPs, seed by seed, so that the rows differ in the method alone (``sweeps.given`` says how). All of them
start from the dense run of the seed, where it is compared too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from baselines.registry import METHODS as KNOWN
from baselines.schema import Bounds, check_value
from geta_core.errors import ConfigError, GetaError
from orchestration.compose import compose
from orchestration.config import Config
from orchestration.console import guarded, write
from orchestration.result import RunResult
from orchestration.rundir import DEFAULT_ROOT, RunDirectory
from orchestration.values import parse_value
from sweeps import tuning
from sweeps.comparison import Comparison, print_comparison, save_record
from sweeps.given import Match, Start, dense_start, has_knob, matched
from sweeps.layout import layout, write_statistics

METHODS = ("dense", "geta", "qat_only", "prune_then_ptq")
REFERENCE, DENSE = "geta", "dense"

HELP = """\
usage: geta compare [methods=[dense,geta,...]] [seeds=[0,1,...]] [match=bits|bops|nothing] [start=dense|scratch]
                    [tune=N] [output=DIR] [record=FILE] [study=NAME] [group=NAME ...] [group.key=VALUE ...]

Run several methods under one budget and print the table: means, standard deviations, and the paired differences to
GETA with 95 % intervals corrected for their number (Holm).

  methods   what is compared (default [dense,geta,qat_only,prune_then_ptq]); all: every method there is
  seeds     every method runs with each of them (default [0])
  match     what the others take from GETA's result of the same seed: bits (default) for qat_only and prune_then_ptq;
            bops for every method that has the knob method.match_bops, with inputs quantized where GETA's are and
            bit widths that begin at GETA's; or nothing
  start     dense (default): every method starts from the weights of the dense run of its seed, one file for all, where
            dense is among the methods; each then takes the same number of steps, ptq_only and obc none. scratch: from
            random weights; ptq_only and obc train a dense model of their own first
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
        start: from which weights the methods start; from the dense run's only where ``dense`` is among them.
        trials: of tuning, per method.
        values: ``group=name`` and ``group.key=value`` for every run, ``method:key=value`` for one method.
        study: MLflow experiment of the runs; None is "compare-TASK", or what ``tracker.experiment`` says.
    """

    methods: Sequence[str]
    seeds: Sequence[int]
    output: Path
    match: Match = "bits"
    start: Start = "dense"
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
        "start": "dense",
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
    start = check_value(own["start"], Start, "start", faults)
    trials = check_value(own["tune"], Annotated[int, Bounds(1)], "tune", faults)
    record = check_value(own["record"], str | None, "record", faults)
    study = check_value(own["study"], str | None, "study", faults)
    if not faults and not (methods and seeds):
        faults.append("methods and seeds must each name at least one")
    if not faults and tuning.SEED in seeds and trials > 1:
        faults.append(f"seeds must not hold {tuning.SEED}, which is the seed of tuning")
    if faults:
        raise ConfigError(faults)
    return Plan(
        methods=methods,
        seeds=seeds,
        output=Path(output),
        match=match,
        start=start,
        trials=trials,
        values=values,
        study=study,
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
    # The dense model and GETA go first, because others are given what they ended with.
    methods = sorted(plan.methods, key=lambda name: (name != DENSE, name != REFERENCE))
    for method in methods:
        chosen[method] = _tuned(plan, method, found) if plan.trials > 1 else ()
    for seed in plan.seeds:
        ended: dict[str, tuple[Config, RunResult]] = {}
        for method in methods:
            write(f"{method}, seed {seed}")
            try:
                keys = merged(places[method], _given(plan, method, ended), chosen[method])
                config = _config(plan, method, seed, keys)
                result = run(config)
            except GetaError as error:
                found.failures[method] = str(error)
                write(f"{method}, seed {seed}: {error}")
                continue
            found.results.setdefault(method, {})[seed] = result
            ended[method] = (config, result)
            target = _target(plan, method, ended)
            if target is not None:
                found.targets.setdefault(method, {})[seed] = target
    found.results = {method: found.results[method] for method in plan.methods if method in found.results}
    write_statistics([Path(result.directory) for own in found.results.values() for result in own.values()])
    return found


def _tuned(plan: Plan, method: str, found: Comparison) -> tuple[str, ...]:
    """Return the keys of a method's best trial; GETA's own gives what the others match."""
    from orchestration.run import run

    ended = {
        other: (_config(plan, other, tuning.SEED, trial.keys), trial.result)
        for other, trial in found.tuned.items()
        if trial.result is not None
    }
    base = _config(plan, method, tuning.SEED, ())
    place = layout(base, plan.values, plan.study)
    given = (*place, 'tracker.cell="tuning"', *_given(plan, method, ended))

    def trial(number: int, keys: Sequence[str]) -> RunResult:
        write(f"{method}, trial {number}: {' '.join(keys) or 'defaults'}")
        config = _config(plan, method, tuning.SEED, merged(given, keys))
        place = plan.output / "tuning" / f"{method}-{number}"
        return run(replace(config, run=replace(config.run, output=str(place))))

    target = _target(plan, method, ended)
    trials = tuning.tune(plan.trials, tuning.space_of(method, base), trial, target)
    best_trial = max(trials, key=lambda each: each.score)
    found.tuned[method] = best_trial
    return best_trial.keys


def merged(*keys: Sequence[str]) -> list[str]:
    """Return ``group.key=value`` of several sources, each key once: a later source wins."""
    return [*{each.partition("=")[0]: each for source in keys for each in source}.values()]


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


def _given(plan: Plan, method: str, ended: Mapping[str, tuple[Config, RunResult]]) -> list[str]:
    """Return the keys that a method gets from runs of the same seed.

    Raises:
        GetaError: when it is to start from the dense model, and there is none.
    """
    keys: list[str] = []
    if REFERENCE in ended and method != REFERENCE:
        keys += matched(method, plan.match, *ended[REFERENCE])
    if plan.start == "dense" and DENSE in plan.methods and method != DENSE:
        if DENSE not in ended:
            raise GetaError("starts from the dense run of its seed, which did not come to its end")
        keys += dense_start(method, ended[DENSE][1])
    return keys


def _target(plan: Plan, method: str, ended: Mapping[str, tuple[Config, RunResult]]) -> float | None:
    """Return the relative BOPs that a method is to meet; None where none is asked for."""
    if plan.match != "bops" or method == REFERENCE or REFERENCE not in ended or not has_knob(method):
        return None
    return ended[REFERENCE][1].relative_bops
