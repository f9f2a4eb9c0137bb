"""``geta run`` and ``python -m orchestration.run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from baselines import matching
from baselines.listing import summaries
from baselines.schema import REQUIRED, Option, describe, options_of
from orchestration.config import CHOICES, SETTINGS, Config, choice_names, choice_options
from orchestration.console import Parser, guarded, write
from orchestration.result import RunResult

if TYPE_CHECKING:
    from orchestration.standing import Standing

EXAMPLES = """\
examples:
  geta run task=digits
  geta run model=resnet20 task=cifar10 task.root=DATA method=geta method.sparsity=0.35 method.weight_bits=[4,8]
  geta run model=mypackage.nets:build task=digits method=qat_only run.epochs=5 run.device=cpu
  geta run --config runs/NAME/resolved.yaml run.seed=1 run.output=runs/again tracker=jsonl

The same command again goes on where the run stopped (run.resume=auto). Values are YAML; group=NAME chooses a part and
group.key=VALUE sets one of its keys. Shown are the keys of the parts chosen on this line:
`geta run method=dense --help` shows those of another method.
"""


def main(arguments: Sequence[str], program: str = "geta run") -> int:
    """Run one configuration.

    Args:
        arguments: of the command line.
        program: how it was called.

    Returns:
        The exit code.
    """
    return guarded(lambda: _main(arguments, program))


def _main(arguments: Sequence[str], program: str) -> int:
    parser = Parser(program, add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--config")
    parser.add_argument("--config-dir")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("values", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        write(help_text(program, given.values))
        return 0
    config = read_config(given.values, given.config, given.config_dir)
    if given.show:
        from orchestration.values import write_yaml

        sys.stdout.write(write_yaml(config.to_dict()))
        return 0
    if config.launcher.name == "slurm":
        return submit(config)
    from orchestration.run import run

    summarize(run(config), config)
    return 0


def submit(config: Config) -> int:
    """Hand a run to Slurm and say so; wait for its end if that is asked for."""
    from orchestration.launchers import slurm
    from orchestration.run import run
    from orchestration.rundir import RunDirectory

    submission = slurm.submit(config)
    directory = submission.directory
    if submission.job is None:
        summarize(run(config), config)
        return 0
    write(f"job {submission.job} submitted; run directory: {directory}")
    write(f"  geta status {directory}\n  geta logs -f {directory}\n  geta cancel {directory}")
    if config.launcher.wait:
        sys.stdout.flush()
        summarize(slurm.wait(RunDirectory(directory), _tell), config)
    return 0


def _tell(now: Standing) -> None:
    """Show where a run stands, when that has changed."""
    sys.stderr.write(f"{now.state}: step {now.step}, {now.text}\n")
    sys.stderr.flush()


def read_config(values: Sequence[str], file: str | None, folder: str | None) -> Config:
    """Return the configuration of a command line; a resolved file needs neither Hydra nor OmegaConf."""
    from orchestration.compose import compose, load

    return load(file, values) if file is not None else compose(values, folder)


def summarize(result: RunResult, config: Config) -> None:
    """Print what a run gave and where it lies."""
    dense = result.dense
    write(
        f"test accuracy {result.accuracy:.2%}, validation {result.metrics.get('val/accuracy', float('nan')):.2%}; "
        f"group sparsity {result.group_sparsity:.1%}, weights {result.weight_bits:.2f} bits, inputs "
        f"{result.activation_bits:.2f} bits, relative BOPs {result.relative_bops:.2%}; {result.bytes:,} bytes "
        f"(dense {int(dense['bytes']):,}), {result.latency_ms:.2f} ms per image in torch (dense "
        f"{dense['latency_ms']:.2f} ms)"
    )
    target = matching.target_of(config.flat().get(f"method.{matching.KEY}"))
    if not matching.meets(result.relative_bops, target):
        write(
            f"method.{matching.KEY} asked for relative BOPs of {target:.2%} within {matching.TOLERANCE:.0%}: missed; "
            "another number of groups or other bit widths come nearer"
        )
    write(f"run directory: {result.directory}   model: {os.path.join(result.directory, 'artifact')}")
    if config.tracker.name == "mlflow":
        write("compare runs in the browser: geta ui " + (os.path.dirname(result.directory) or "."))


def help_text(program: str, values: Sequence[str]) -> str:
    """Explain the groups and their keys, for the choices on the command line."""
    chosen = {"task": "digits", "method": "geta", "model": "digits_cnn"}
    chosen |= {group: name for group, equals, name in (each.partition("=") for each in values) if group in CHOICES}
    lines = [
        f"usage: {program} [--config FILE] [--config-dir DIR] [--show] [group=NAME ...] [group.key=VALUE ...]",
        "",
        "Train, compress and measure one model.",
        "",
        "  --config FILE      start from a resolved configuration (needs PyYAML alone)",
        "  --config-dir DIR   search DIR/<group>/<name>.yaml before the built-in group files",
        "  --show             print the resolved configuration and stop",
        "",
    ]
    for group in CHOICES:
        names = ", ".join(choice_names(group))
        lines += _wrapped(f"{group}=NAME, one of: {names}; or package.module:name", "  ", "")
        if group == "method":
            for name, text in summaries():
                lines += _wrapped(f"{name}: {text}", "      ", "    ")
        lines += [f"  keys of {group}={chosen[group]}:"]
        if group == "model":
            lines += _entry("model.weights", "text or null", "null", "file of weights, or a dense run's directory")
        lines += _keys(group, choice_options(group, chosen[group]))
        lines.append("")
    for group, target in SETTINGS.items():
        options = options_of(target)
        named = "name" in options
        lines.append(f"{group}=NAME: {describe(options['name'].annotation)}" if named else f"{group}:")
        lines += _keys(group, {key: option for key, option in options.items() if key != "name"})
        lines.append("")
    return "\n".join([*lines, EXAMPLES])


def _keys(group: str, options: Mapping[str, Option]) -> Iterator[str]:
    for option in options.values():
        default = "must be given" if option.default is REQUIRED else _yaml(option.default)
        yield from _entry(f"{group}.{option.name}", describe(option.annotation), default, option.doc)


def _entry(key: str, kind: str, default: str, doc: str) -> list[str]:
    head = f"  {key} = {default}   ({kind})"
    return [*_wrapped(head, "      ", ""), *(_wrapped(doc, "      ", "      ") if doc else [])]


def _wrapped(text: str, indent: str, first: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 110, initial_indent=first, subsequent_indent=indent, break_long_words=False)


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_yaml, value))}]" if isinstance(value, (tuple, list)) else str(value)
