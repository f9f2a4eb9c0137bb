"""What the commands on grids of runs share: reading their own keys, and writing text, pictures and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.schema import check_value
from geta_core.errors import ConfigError, closest
from orchestration.console import guarded, write
from orchestration.values import parse_value
from sweeps.grid import Found
from sweeps.statistics import Difference

STYLES = {"--markdown": "markdown", "--latex": "latex", "--html": "html"}


@dataclass(frozen=True)
class Given:
    """A command line, sorted.

    Attributes:
        names: words that are neither flags nor keys.
        flags: with their dashes.
        own: the command's own keys, checked.
        values: ``group=choice`` and ``group.key=value`` of the runs.
    """

    names: tuple[str, ...]
    flags: frozenset[str]
    own: Mapping[str, Any]
    values: tuple[str, ...]

    @property
    def style(self) -> Any:
        """How tables are written."""
        return next((style for flag, style in STYLES.items() if flag in self.flags), "text")


def command(arguments: Sequence[str], explanation: Callable[[], str], body: Callable[[], int]) -> int:
    """Explain a command where that is asked for, or nothing is; else do it."""
    if not arguments or any(each in ("-h", "--help") for each in arguments):
        write(explanation())
        return 0
    return guarded(body)


def one_name(given: Given, kind: str, known: Sequence[str]) -> str:
    """Return the one name that a command line must hold.

    Raises:
        ConfigError: when it holds none, or several.
    """
    if len(given.names) != 1:
        raise ConfigError([f"one {kind} must be named ({', '.join(known)}), but got {list(given.names)}"])
    return given.names[0]


def read_line(arguments: Sequence[str], flags: Sequence[str], own: Mapping[str, tuple[Any, Any]]) -> Given:
    """Sort a command line.

    Args:
        arguments: of the command line.
        flags: known flags.
        own: key -> (type, default); a list is also read from "a,b" and from a single value.

    Raises:
        ConfigError: naming every fault.
    """
    faults: list[str] = []
    names, found_flags, values = [], set(), []
    checked = {key: default for key, (_, default) in own.items()}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if argument.startswith("-"):
            if argument not in flags:
                faults.append(f"unknown flag {argument}{closest(argument, flags)}")
            found_flags.add(argument)
        elif equals and key in own:
            value = parse_value(text, key, faults)
            annotation = own[key][0]
            if annotation in (list[str], list[int]):
                value = _listed(value)
            checked[key] = check_value(value, annotation, key, faults)
        elif equals:
            values.append(argument)
        else:
            names.append(argument)
    styles = found_flags & STYLES.keys()
    if len(styles) > 1:
        faults.append(f"only one of {', '.join(sorted(STYLES))} may be given, but got {', '.join(sorted(styles))}")
    if faults:
        raise ConfigError(faults)
    return Given(tuple(names), frozenset(found_flags), checked, tuple(values))


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list) else [value]


def output_of(given: Given) -> Path:
    """Return the folder that receives the runs."""
    return Path(given.own["output"]).expanduser()


def say_failures(found: Found) -> None:
    """Name the runs that gave nothing, with the reasons."""
    for run, why in found.failures.items():
        write(f"{run}: {why}")


def keep_figures(found: Found, folder: Path, title: str, differences: Mapping[str, Difference] | None = None) -> None:
    """Draw what complete runs gave into a folder, and hand the pictures to the trackers of those runs."""
    from sweeps.figures import draw_study
    from sweeps.figures.tracked import log_figures

    drawn = draw_study(found, folder, title, differences) if found.results else []
    if drawn:
        write(f"figures: {folder}")
        log_figures(found.folders(), drawn)
