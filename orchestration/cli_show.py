"""``geta models``, ``geta tasks``, ``geta methods`` and ``geta measure``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from baselines.schema import REQUIRED, describe
from geta_core.errors import ArtifactError
from orchestration.console import Parser, guarded, table, write


def models(arguments: Sequence[str]) -> int:
    """List the models."""
    return _list("model", "geta models", arguments)


def tasks(arguments: Sequence[str]) -> int:
    """List the tasks."""
    return _list("task", "geta tasks", arguments)


def methods(arguments: Sequence[str]) -> int:
    """List the methods."""
    return _list("method", "geta methods", arguments)


def measure(arguments: Sequence[str]) -> int:
    """Check a saved model and print its accounting."""
    parser = Parser("geta measure", description="Check a compressed model and print what it costs.")
    parser.add_argument("directory", help="a run directory, or an artifact")
    given = parser.parse_args(arguments)
    return guarded(lambda: _measure(Path(given.directory)))


def _list(group: str, program: str, arguments: Sequence[str]) -> int:
    parser = Parser(program, description=f"List what {group}=NAME can be, with its keys.")
    parser.add_argument("name", nargs="*", help="only these")
    given = parser.parse_args(arguments)

    def show() -> int:
        from baselines.listing import lines
        from orchestration.config import choice_names, choice_options

        for name in given.name or choice_names(group):
            write(f"{group}={name}")
            for line in lines(name) if group == "method" else []:
                write(f"    {line}")
            for option in choice_options(group, name).values():
                default = "(must be given)" if option.default is REQUIRED else f"= {option.default!r}"
                write(f"    {group}.{option.name} {default}   {option.doc or describe(option.annotation)}")
        return 0

    return guarded(show)


def _measure(place: Path) -> int:
    from geta_core.artifact import load
    from geta_core.artifact.manifest import field, read

    folder = place / "artifact" if (place / "artifact").is_dir() else place
    load(folder)  # every checksum is verified
    report = field(read(folder), "report", dict)
    try:
        rows = [
            [row["name"], row["op"], f"{row['macs']:,.0f}", f"{row['weight_bits']:.2f}", f"{row['input_bits']:.2f}"]
            for row in report["layers"]
        ]
        shown = [
            f"parameters {report['parameters']:,} (dense {report['dense_parameters']:,})",
            f"MACs {report['macs']:,.0f} (dense {report['dense_macs']:,.0f})",
            f"group sparsity {report['group_sparsity']:.2%}, relative BOPs {report['relative_bops']:.3%}",
            f"weights {report['weight_bits']:.3f} bits, inputs {report['activation_bits']:.3f} bits",
            f"{report['bytes']:,} bytes of tensors",
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the report in {folder} lacks something ({error})") from error
    table(str(folder), ["layer", "operation", "MACs", "weight bits", "input bits"], rows)
    for line in shown:
        write(line)
    return 0
