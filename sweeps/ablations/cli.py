"""``geta ablate``: runs an ablation, prints its table, draws its figures and writes its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import GetaError
from orchestration.console import write
from orchestration.rundir import DEFAULT_ROOT
from sweeps.ablations.ablation import Ablation
from sweeps.ablations.spec import known, read
from sweeps.command import STYLES, Given, command, keep_figures, one_name, output_of, read_line, say_failures
from sweeps.grid import Found

HELP = """\
usage: geta ablate NAME [base=B | base=[B1,B2]] [seeds=[0,1,...]] [variants=[V,...]] [output=DIR] [record=FILE]
                   [--show] [--dry-run] [--markdown | --latex | --html] [group.key=VALUE ...]

Run a base and its variants, each of which differs from the base in exactly one resolved key, over the same seeds;
print the differences with intervals corrected for their number (Holm), and draw them.

  NAME        one of: {names}; or a file NAME.yaml of the same form
  base        which of the file's bases (default: the first); several give one table each
  seeds       instead of the base's own
  variants    only these
  output      folder of the runs (default runs); complete runs are not run again
  record      JSON file that receives every run; with several bases -BASE is put before its ending
  --show      print the table of what is complete; run nothing
  --dry-run   print the runs as commands; run nothing
"""
FLAGS = ("--show", "--dry-run", *STYLES)


def main(arguments: Sequence[str]) -> int:
    """Run an ablation from the command line."""
    return command(arguments, lambda: HELP.format(names=", ".join(known())), lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    own = {
        "base": (list[str], [""]),
        "seeds": (list[int], []),
        "variants": (list[str], []),
        "output": (str, DEFAULT_ROOT),
        "record": (str | None, None),
    }
    given = read_line(arguments, FLAGS, own)
    spec = read(one_name(given, "ablation", known()))
    options = {"values": given.values, "seeds": given.own["seeds"], "only": given.own["variants"]}
    ablations = [Ablation(spec, base, **options) for base in given.own["base"]]
    plans = [ablation.plan(output_of(given)) for ablation in ablations]  # all are checked before the first run
    if "--dry-run" in given.flags:
        from sweeps.estimate import commands

        for plan in plans:
            for line in commands(plan):
                write(line)
        return 0
    found = [_one(ablation, given) for ablation in ablations]
    if given.own["record"] is not None:  # last: a record in the working tree would be a change of code to the next base
        for ablation, runs in zip(ablations, found, strict=True):
            _record(ablation, runs, Path(given.own["record"]), len(ablations) > 1)
    return 0


def _one(ablation: Ablation, given: Given) -> Found:
    """Run one base, or read what is complete of it, and show it."""
    output = output_of(given)
    found = ablation.collect(output) if "--show" in given.flags else ablation.run(output)
    if not found.results:
        reasons = "; ".join(f"{run}: {why}" for run, why in found.failures.items())
        raise GetaError(
            f"no run of {ablation.spec.name} ({ablation.base_name}) is complete{': ' * bool(reasons)}{reasons}"
        )
    write(ablation.render(found.results, given.style))
    say_failures(found)
    folder = output / "ablations" / ablation.spec.name / ablation.base_name / "figures"
    title = f"{ablation.spec.title} ({ablation.base_name})"
    keep_figures(found, folder, title, ablation.differences(found.results))
    return found


def _record(ablation: Ablation, found: Found, path: Path, several: bool) -> None:
    path = path.with_stem(f"{path.stem}-{ablation.base_name}") if several else path
    ablation.save(found, path)
    write(f"record: {path}")
