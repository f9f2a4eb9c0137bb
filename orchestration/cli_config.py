"""``geta config``: the whole configuration of a run, and where each value comes from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from baselines.registry import METHODS
from orchestration.compose import Composition, trace, trace_load
from orchestration.config import CHOICES, SETTINGS, TASK_STATES, Config
from orchestration.console import Parser, guarded, write
from orchestration.tasks import TASKS

DESCRIPTION = """\
Show the configuration that `geta run` would run with the same arguments, and where each value comes from: the command
line, a recipe, a file, the task's data, or a default in the code. The output is YAML that `geta run --config` takes.
"""
STATED = "stated by the task"


def main(arguments: Sequence[str]) -> int:
    """Show a configuration."""
    parser = Parser("geta config", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("values", nargs="*", metavar="group=NAME or group.key=VALUE", help="as for `geta run`")
    parser.add_argument("--config", help="start from a resolved configuration")
    parser.add_argument("--config-dir", help="search this folder before the built-in group files")
    parser.add_argument("--data", action="store_true", help="read the task's data and show what it states")
    given = parser.parse_intermixed_args(arguments)
    return guarded(lambda: _show(given))


def _show(given: argparse.Namespace) -> int:
    if given.config is not None:
        composition = trace_load(given.config, given.values)
    else:
        composition = trace(given.values, given.config_dir)
    write("\n".join(described(composition, task_options(composition.config) if given.data else None)))
    return 0


def described(composition: Composition, options: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Return the lines of YAML that show a configuration with its origins.

    Args:
        composition: configuration and origins.
        options: what the task's data states of the model; None where it was not read.
    """
    rows: list[tuple[str, str]] = []
    for group, section in composition.config.to_dict().items():
        rows.append((f"{group}:", ""))
        for key, value in section.items():
            origin = composition.origins.get(f"{group}.{key}") or f"default of {_owner(composition.config, group)}"
            rows.append((f"  {key}: {_text(value)}", origin))
        if group == "model":
            for key in stated_keys(composition.config):
                value = _text(options[key]) if options is not None and key in options else "?"
                rows.append((f"  # {key}: {value}", STATED))
    width = max(len(left) for left, origin in rows if origin and len(left) <= 60)
    for left, origin in rows:
        yield f"{left:<{width}}  # {origin}" if origin else left


def stated_keys(config: Config) -> list[str]:
    """Return the model's options that are left to the task."""
    from orchestration.models import registry

    entry = registry.find(config.model.name)
    return [key for key in TASK_STATES if entry.accepts(key) and key not in config.model.options]


def task_options(config: Config) -> Mapping[str, Any]:
    """Read the task's data and return what it states of the model.

    Raises:
        GetaError: when the data is not there.
    """
    import torch

    from orchestration.tasks.base import Placement

    task = TASKS.resolve(config.task.name)(**config.task.options)
    task.setup(config.run.seed, Placement(torch.device("cpu")))
    stated: Mapping[str, Any] = task.model_options()
    return stated


def _owner(config: Config, group: str) -> str:
    if group in SETTINGS:
        owner: Any = SETTINGS[group]
    elif group == "model":
        return f"model {config.model.name}"
    else:
        assert group in CHOICES
        owner = METHODS.resolve(config.method.name) if group == "method" else TASKS.resolve(config.task.name)
    return f"{owner.__module__}.{owner.__qualname__}"


def _text(value: Any) -> str:
    """Return a value as YAML in one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
