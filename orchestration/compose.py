"""From a command line, or from a YAML file with a few changes, to a checked ``Config``.

``compose`` lets Hydra join the group files of ``orchestration/conf`` (and of the user's own ``--config-dir``), the
recipe of the task and model, and the arguments. ``load`` reads a resolved file and needs PyYAML alone. Every fault is
found by our own checks, so that all of them are reported at once; Hydra stops at the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.registry import METHODS
from geta_core.errors import ConfigError, GetaError, closest
from orchestration.config import CHOICES, SETTINGS, Config, choice_names
from orchestration.values import read_yaml, set_key, split_arguments

CONF = Path(__file__).resolve().parent / "conf"
CHOICE_GROUPS = (*CHOICES, *(group for group in SETTINGS if group != "run"))
DEFAULT_TASK, DEFAULT_METHOD, DEFAULT_MODEL = "digits", "geta", "digits_cnn"


COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Composition:
    """A checked configuration and where its values were stated; what nobody stated is a default in the code."""

    config: Config
    origins: Mapping[str, str]
    """``group.key`` -> command line, recipe or file. The name of a group's choice stands at ``group.name``."""


def load(path: str | Path, arguments: Sequence[str] = ()) -> Config:
    """Read a resolved configuration and change some of its keys.

    Args:
        path: a YAML file, such as the ``resolved.yaml`` of a run directory.
        arguments: ``group=choice`` and ``group.key=value``.

    Raises:
        ConfigError: naming every fault.
    """
    return trace_load(path, arguments).config


def trace_load(path: str | Path, arguments: Sequence[str] = ()) -> Composition:
    """Do what ``load`` does, and note where each value was stated."""
    values = read_yaml(Path(path))
    origins = {
        f"{group}.{key}": f"file {path}"
        for group, section in values.items()
        for key in (section if isinstance(section, Mapping) else ["name"])
    }
    faults: list[str] = []
    choices, keys = split_arguments(arguments, CHOICE_GROUPS, faults)
    search = _Search((CONF,))
    for group, name in choices.items():
        if search.check(group, name, faults):
            file = search.file(group, name)
            values[group] = read_yaml(file) if file else {"name": name}
            origins = {key: origin for key, origin in origins.items() if key.partition(".")[0] != group}
            origins |= _file_origins(search, {group: name})
            origins[f"{group}.name"] = COMMAND_LINE
    for key, value in keys.items():
        set_key(values, key, value)
        origins[key] = COMMAND_LINE
    return Composition(Config.from_dict(values, faults), origins)


def compose(arguments: Sequence[str], config_dir: str | Path | None = None) -> Config:
    """Join defaults, group files, the recipe and the arguments.

    Args:
        arguments: ``group=choice`` and ``group.key=value``.
        config_dir: a folder of the user's own group files, searched first (``method/mine.yaml`` for ``method=mine``).

    Raises:
        ConfigError: naming every fault.
    """
    return trace(arguments, config_dir).config


def trace(arguments: Sequence[str], config_dir: str | Path | None = None) -> Composition:
    """Do what ``compose`` does, and note where each value was stated."""
    faults: list[str] = []
    choices, keys = split_arguments(arguments, CHOICE_GROUPS, faults)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError([f"--config-dir must be a folder, but {str(config_dir)!r} is none"])
    search = _Search((Path(config_dir).resolve(), CONF) if config_dir is not None else (CONF,))
    unknown = {group for group, name in choices.items() if not search.check(group, name, faults)}
    # The keys of a group cannot be checked without knowing what they belong to.
    choices = {group: name for group, name in choices.items() if group not in unknown}
    keys = {key: value for key, value in keys.items() if key.partition(".")[0] not in unknown}
    stated = {**{f"{group}.name": COMMAND_LINE for group in choices}, **dict.fromkeys(keys, COMMAND_LINE)}
    choices, keys, recipes = _with_recipe(search, choices, keys)
    if "model" not in choices and "model.name" not in keys:
        if "model" not in unknown:
            names = ", ".join(search.names("model"))
            faults.append(f"model must be given, since this task has no usual one (known: {names})")
        choices["model"] = DEFAULT_MODEL  # only so that the other groups are checked too
    values = _hydra(search, choices, keys)
    chosen = {**_defaults(), **choices}
    base = {f"{group}.name": f"file {CONF / 'config.yaml'}" for group in chosen}
    origins = {**base, **_file_origins(search, chosen), **recipes, **stated}
    return Composition(Config.from_dict(values, faults), origins)


def _defaults() -> dict[str, str]:
    """Return the choices that ``conf/config.yaml`` starts from."""
    entries = read_yaml(CONF / "config.yaml")["defaults"]
    pairs = [pair for entry in entries if isinstance(entry, Mapping) for pair in entry.items()]
    return {str(group): str(name) for group, name in pairs if name is not None}


def _file_origins(search: _Search, choices: Mapping[str, str]) -> dict[str, str]:
    """Name the group files that state keys; a file's own name says nothing about who chose it."""
    return {
        f"{group}.{key}": f"file {file}"
        for group, name in choices.items()
        if (file := search.file(group, str(name))) is not None
        for key in read_yaml(file)
        if key != "name"
    }


@dataclass(frozen=True)
class _Search:
    """The folders that hold group files, the user's before ours."""

    folders: tuple[Path, ...]

    def file(self, group: str, name: str) -> Path | None:
        """Return the group file of a choice, if there is one."""
        if not name.replace("_", "").replace("-", "").isalnum():
            return None
        found = (folder / group / f"{name}.yaml" for folder in self.folders)
        return next((path for path in found if path.is_file()), None)

    def names(self, group: str) -> list[str]:
        """Return every choice of a group."""
        stems = {path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")}
        return sorted({*stems, *(choice_names(group) if group in CHOICES else [])})

    def check(self, group: str, name: str, faults: list[str]) -> bool:
        """Whether a group has this choice; a fault is appended otherwise."""
        if (group in CHOICES and ":" in name) or name in self.names(group):
            return True
        own = "; own code is package.module:name" if group in CHOICES else ""
        faults.append(f"unknown {group} {name!r}{closest(name, self.names(group))}{own}")
        return False

    def recipe(self, name: str, method: str) -> dict[str, Any]:
        """Return a recipe's dotted keys for a method; empty where there is no such recipe."""
        path = self.file("recipe", name)
        if path is None:
            return {}
        values = read_yaml(path)
        return {**(values.get("overrides") or {}), **((values.get("methods") or {}).get(method) or {})}


def _with_recipe(
    search: _Search, choices: Mapping[str, str], keys: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """Put the recipe of the task, and of the task with the model, under what the user asks for.

    Returns:
        Choices, keys, and which recipe states which of them.
    """
    task, method = choices.get("task", DEFAULT_TASK), choices.get("method", DEFAULT_METHOD)
    recipe = search.recipe(task, method)
    origins = dict.fromkeys(recipe, f"recipe {task}")
    model = choices.get("model", recipe.get("model"))
    special = search.recipe(f"{task}-{model}", method)
    recipe, origins = {**recipe, **special}, {**origins, **dict.fromkeys(special, f"recipe {task}-{model}")}
    # Another optimizer or scheduler than the recipe's brings its own defaults.
    replaced = {group for group in choices if recipe.get(group) not in (None, choices[group])}
    recipe = {key: value for key, value in recipe.items() if key.partition(".")[0] not in replaced}
    decided = _decided(method, keys)
    recipe = {key: value for key, value in recipe.items() if key not in decided}
    recipe_choices = {key: str(value) for key, value in recipe.items() if "." not in key}
    recipe_keys = {key: value for key, value in recipe.items() if "." in key}
    used = {key if "." in key else f"{key}.name": origins[key] for key in recipe}
    return {**recipe_choices, **choices}, {**recipe_keys, **keys}, used


def _decided(method: str, keys: Mapping[str, Any]) -> set[str]:
    """Return the method's keys that another one, which the user states, decides: a recipe has no say in them."""
    try:
        target = METHODS.resolve(method)
    except GetaError:  # reported where the choices are checked
        return set()
    decides: Mapping[str, tuple[str, ...]] = getattr(target, "DECIDES", {})
    stated = [key for key in decides if keys.get(f"method.{key}") is not None]
    return {f"method.{name}" for key in stated for name in decides[key]}


def _hydra(search: _Search, choices: Mapping[str, str], keys: Mapping[str, Any]) -> dict[str, Any]:
    try:
        import hydra
        from hydra.core.config_store import ConfigStore
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        message = "composing a command line needs hydra-core; install it, or give a resolved file with --config"
        raise ConfigError([message]) from error
    overrides = []
    for group, name in choices.items():
        if search.file(group, name):
            overrides.append(f"{group}={name}")
        else:  # no file: the name alone is the group's content
            ConfigStore.instance().store(group=group, name="named", node={"name": name}, provider="geta")
            overrides.append(f"{group}=named")
    if len(search.folders) > 1:
        overrides.append(f"hydra.searchpath=[{_quote(f'file://{search.folders[0]}')}]")
    # Hydra's grammar knows no quoted keys, and takes the ${NAME} of a shell line for a reference of its own.
    plainly = {key: value for key, value in keys.items() if isinstance(value, Mapping) or "${" in str(value)}
    overrides += [f"++{key}={_quote(value)}" for key, value in keys.items() if key not in plainly]
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None  # a program that uses Hydra itself keeps its own
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            values = OmegaConf.to_container(hydra.compose("config", overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([" ".join(str(error).split())]) from error
    finally:
        state.hydra = outer
    assert isinstance(values, dict)
    composed = {str(key): value for key, value in values.items()}
    for key, value in plainly.items():
        set_key(composed, key, value)
    return composed


def _quote(value: Any) -> str:
    """Write a plain value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_quote(str(key))}: {_quote(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_quote(each) for each in value) + "]"
    # Backslashes count only before a quote, where each must be doubled.
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
    return f"'{text}'"
