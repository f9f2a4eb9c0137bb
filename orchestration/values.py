"""Reads YAML values as people write them, and sets dotted keys; needs PyYAML alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from geta_core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as in YAML 1.2 (YAML 1.1 wants 1.0e-4)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_value(text: str, key: str, faults: list[str]) -> Any:
    """Return the value that a text on the command line stands for ("[4, 8]" is a list, "null" is None)."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        faults.append(f"{key}={text}: the value is not valid YAML; put it in quotes if it is text")
        return None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: when the file is missing, is no YAML or holds no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError([f"cannot read the configuration {path}: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{path} must hold a mapping of groups, but holds {type(values).__name__}"])
    return values


def write_yaml(values: dict[str, Any]) -> str:
    """Return the YAML text of plain values, keys in their order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def split_arguments(
    arguments: Iterable[str], groups: Iterable[str], faults: list[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Sort ``group=choice`` from ``group.key=value``; a later argument replaces an earlier one.

    Returns:
        Choices by group, and parsed values by dotted key.
    """
    choices: dict[str, str] = {}
    keys: dict[str, Any] = {}
    known = set(groups)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            faults.append(f"{argument!r} must have the form key=value, such as method.sparsity=0.5")
        elif "." in key:
            before = len(faults)
            value = parse_value(text, key, faults)
            if len(faults) == before:
                keys[key] = value
        elif key in known and text:
            choices[key] = text
        elif key in known:
            faults.append(f"{key}= must name one of its options")
        else:
            faults.append(_unknown(key, known))
    return choices, keys


def _unknown(key: str, groups: set[str]) -> str:
    if key == "run":
        return "run has keys only, such as run.epochs=3"
    from geta_core.errors import closest

    return f"unknown group {key!r}{closest(key, {*groups, 'run'})}"


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set ``values["group"]["key"]`` for the dotted ``group.key``, making mappings on the way."""
    *path, last = key.split(".")
    for part in path:
        inner = values.get(part)
        if not isinstance(inner, dict):
            inner = values[part] = {}
        values = inner
    values[last] = value
