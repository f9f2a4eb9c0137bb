"""Where a study searches: the methods' own spaces, what the user adds, and the settings of grids and lists."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines.base import about
from baselines.registry import METHODS
from baselines.search import Dimension, OneOf, Whole, edges, parse_dimension
from geta_core.errors import ConfigError, closest
from orchestration.config import Config
from orchestration.values import read_yaml, set_key
from sweeps.studies.settings import SweepSettings

Setting = Mapping[str, Any]
"""``group.key`` -> value: what differs from the method's base."""


def spaces_of(settings: SweepSettings, bases: Mapping[str, Config], faults: list[str]) -> dict[str, dict[str, Any]]:
    """Return method -> ``group.key`` -> dimension, every edge checked against the method's keys.

    Args:
        settings: of the study.
        bases: method -> configuration that its runs start from.
        faults: every fault is appended here.
    """
    more = _more(settings, faults)
    found: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for method, base in bases.items():
        own = about(METHODS.resolve(method)).search if settings.own_space else {}
        space = {f"method.{key}": dimension for key, dimension in own.items()}
        known = set(base.flat())
        for key, value in more.items():
            owner, bare = _owner(key, bases)
            if owner not in (None, method) or (owner is None and bare not in known):
                continue
            used.add(key)
            if bare not in known:
                faults.append(f"unknown key {bare} in sweep.space of {method}{closest(bare, known)}")
            elif value is None:
                space.pop(bare, None)
            elif (dimension := parse_dimension(value, f"sweep.space.{key}", faults)) is not None:
                space[bare] = dimension
        found[method] = space
        for key, dimension in space.items():
            for value in edges(dimension):
                faults.extend(_faults_of(base, {key: value}))
    keys = {key for base in bases.values() for key in base.flat()}
    faults += [f"unknown key {key} in sweep.space{closest(_owner(key, bases)[1], keys)}" for key in {*more} - used]
    return found


def _more(settings: SweepSettings, faults: list[str]) -> dict[str, Any]:
    try:
        given = settings.space
        return {str(k): v for k, v in (read_yaml(Path(given)) if isinstance(given, str) else given or {}).items()}
    except ConfigError as error:
        faults.extend(error.faults)
        return {}


def _owner(key: str, methods: Mapping[str, Any]) -> tuple[str | None, str]:
    """Split ``METHOD:group.key``; a method may itself hold a colon."""
    owner, colon, bare = key.rpartition(":")
    return (owner, bare) if colon and owner in methods else (None, key)


def _faults_of(base: Config, setting: Setting) -> list[str]:
    try:
        Config.from_dict(applied(base.to_dict(), setting))
    except ConfigError as error:
        return [f"{base.method.name}: {fault}" for fault in error.faults]
    return []


def applied(tree: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Return a configuration tree with some keys set; the tree is changed."""
    for key, value in setting.items():
        set_key(tree, key, list(value) if isinstance(value, tuple) else value)
    return tree


def listed(
    settings: SweepSettings,
    bases: Mapping[str, Config],
    spaces: Mapping[str, Mapping[str, Dimension]],
    faults: list[str],
) -> dict[str, list[Setting]]:
    """Return method -> its settings, for a grid or a list; every method has as many as the others."""
    if settings.sampler == "grid":
        every = {method: grid(space, settings.points) for method, space in spaces.items()}
    else:
        every = _fixed(settings, bases, faults)
    sizes = {method: len(own) for method, own in every.items()}
    wanted = settings.trials or min(sizes.values(), default=0)
    if settings.trials is None and len(set(sizes.values())) > 1:
        shown = ", ".join(f"{method} {size}" for method, size in sizes.items())
        faults.append(f"every method must have as many settings as the others ({shown}); give sweep.trials")
    if any(size < wanted for size in sizes.values()):
        shown = ", ".join(f"{method} {size}" for method, size in sizes.items())
        faults.append(f"sweep.trials={wanted} must not exceed the number of settings ({shown})")
    if settings.sampler == "grid" and settings.trials is not None:
        for number, own in enumerate(every.values()):  # part of a grid is spread over all of it
            random.Random(settings.seed * 1009 + number).shuffle(own)
    found = {method: own[:wanted] for method, own in every.items()}
    for method, own in found.items():
        faults += [fault for setting in own for fault in _faults_of(bases[method], setting)]
    return found


def grid(space: Mapping[str, Dimension], points: int) -> list[Setting]:
    """Return every combination of a space's values; intervals have ``points`` values, or as many whole ones."""
    values = [[(key, value) for value in ticks(dimension, points)] for key, dimension in sorted(space.items())]
    return [dict(each) for each in itertools.product(*values)]


def ticks(dimension: Dimension, points: int) -> tuple[Any, ...]:
    """Return evenly spread values of a dimension, its ends among them."""
    if isinstance(dimension, OneOf):
        return dimension.values
    shares = [number / (points - 1) for number in range(points)]
    if isinstance(dimension, Whole):
        width = dimension.high - dimension.low
        return tuple(dict.fromkeys(dimension.low + round(share * width) for share in shares))
    if dimension.log:
        low, high = math.log(dimension.low), math.log(dimension.high)
        inner = [rounded(math.exp(low + share * (high - low))) for share in shares[1:-1]]
    else:
        inner = [rounded(dimension.low + share * (dimension.high - dimension.low)) for share in shares[1:-1]]
    return (dimension.low, *inner, dimension.high)


def rounded(value: float) -> float:
    """Return a value with as many digits as one wants to read."""
    return float(f"{value:.4g}")


def _fixed(settings: SweepSettings, bases: Mapping[str, Config], faults: list[str]) -> dict[str, list[Setting]]:
    given = settings.settings or []
    found: dict[str, list[Setting]] = {}
    if isinstance(given, Mapping):
        faults += [f"unknown method {each!r} in sweep.settings{closest(each, bases)}" for each in {*given} - {*bases}]
        faults += [f"sweep.settings must have a list for {method}" for method in bases if method not in given]
    for method in bases:
        own: Sequence[Any] = given.get(method, []) if isinstance(given, Mapping) else given
        found[method] = list(_mappings(own if isinstance(own, list) else [own], method, faults))
    return found


def _mappings(given: Sequence[Any], method: str, faults: list[str]) -> Iterator[Setting]:
    for each in given:
        if not isinstance(each, Mapping) or not all("." in str(key) for key in each):
            faults.append(
                f'sweep.settings of {method} must hold mappings such as {{"method.lr_quant": 1e-3}}: {each!r}'
            )
        else:
            yield {str(key): value for key, value in each.items()}
