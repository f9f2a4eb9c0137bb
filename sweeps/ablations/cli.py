"""``geta ablate``: runs an ablation, prints its table, draws its figures and writes its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ConfigError, GetaError
from orchestration.console import guarded, write
from orchestration.rundir import DEFAULT_ROOT
from sweeps.ablations.ablation import Ablation
from sweeps.ablations.spec import known, read
from sweeps.command import STYLES, Given, output_of, read_line
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
    if not arguments or any(each in ("-h", "--help") for each in arguments):
        write(HELP.format(names=", ".join(known())))
        return 0
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    own = {
        "base": (list[str], [""]),
        "seeds": (list[int], []),
        "variants": (list[str], []),
        "output": (str, DEFAULT_ROOT),
        "record": (str | None, None),
    }
    given = read_line(arguments, FLAGS, own)
    if len(given.names) != 1:
        raise ConfigError([f"one ablation must be named ({', '.join(known())}), but got {list(given.names)}"])
    spec = read(given.names[0])
    options = {"values": given.values, "seeds": given.own["seeds"], "only": given.own["variants"]}
    ablations = [Ablation(spec, base, **options) for base in given.own["base"]]
    plans = [ablation.plan(output_of(given)) for ablation in ablations]  # all are checked before the first run
    if "--dry-run" in given.flags:
        from sweeps.estimate import commands

        for plan in plans:
            for line in commands(plan):
                write(line)
        return 0
    for ablation in ablations:
        _one(ablation, given, len(ablations) > 1)
    return 0


def _one(ablation: Ablation, given: Given, several: bool) -> None:
    output = output_of(given)
    found = ablation.collect(output) if "--show" in given.flags else ablation.run(output)
    if not found.results:
        reasons = "; ".join(f"{run}: {why}" for run, why in found.failures.items())
        raise GetaError(
            f"no run of {ablation.spec.name} ({ablation.base_name}) is complete{': ' * bool(reasons)}{reasons}"
        )
    write(ablation.render(found.results, given.style))
    for run, why in found.failures.items():
        write(f"{run}: {why}")
    _keep(ablation, found, output, given.own["record"], several)


def _keep(ablation: Ablation, found: Found, output: Path, record: str | None, several: bool) -> None:
    """Draw the figures, hand them to the trackers, and write the record."""
    from sweeps.figures import draw_study
    from sweeps.figures.tracked import log_figures

    folder = output / "ablations" / ablation.spec.name / ablation.base_name / "figures"
    drawn = draw_study(
        found, folder, f"{ablation.spec.title} ({ablation.base_name})", ablation.differences(found.results)
    )
    if drawn:
        write(f"figures: {folder}")
        log_figures(found.folders(), drawn)
    if record is not None:
        path = Path(record)
        path = path.with_stem(f"{path.stem}-{ablation.base_name}") if several else path
        ablation.save(found, path)
        write(f"record: {path}")
