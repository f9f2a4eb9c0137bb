"""The data file of an ablation, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.schema import Bounds, check_value
from geta_core.errors import ConfigError, closest
from orchestration.values import read_yaml

DATA = Path(__file__).resolve().parent / "data"
SEED = Bounds(0)


@dataclass(frozen=True)
class Base:
    """What the variants vary.

    Attributes:
        keys: ``group=choice`` and ``group.key=value`` of the run.
        seeds: every variant runs with each of them.
        scale: ``full`` or ``smoke``: same code, minutes on a CPU.
    """

    keys: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: str


@dataclass(frozen=True)
class Spec:
    """An ablation as its file states it.

    Attributes:
        name: of the ablation.
        title: stands above its table.
        about: one sentence on what is varied.
        bases: by name; the first is the usual one.
        variants: name -> the one key and its value.
    """

    name: str
    title: str
    about: str
    bases: Mapping[str, Base]
    variants: Mapping[str, tuple[str, Any]]


def known() -> list[str]:
    """Return the names of the ablations that come with geta."""
    return sorted(path.stem for path in DATA.glob("*.yaml"))


def find(name: str) -> Path:
    """Return the file of an ablation: one of ours by its name, or the path of a file.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in known():
        raise ConfigError([f"unknown ablation {name!r}{closest(name, known())}; or give a file NAME.yaml"])
    return DATA / f"{name}.yaml"


def read(name: str) -> Spec:
    """Read and check an ablation.

    Raises:
        ConfigError: naming every fault of the file.
    """
    path = find(name)
    values = read_yaml(path)
    faults: list[str] = []
    for key in values.keys() - {"title", "about", "bases", "variants"}:
        faults.append(f"{path.name}: unknown key {key!r}{closest(str(key), ['title', 'about', 'bases', 'variants'])}")
    texts = [check_value(values.get(key, ""), str, f"{path.name}: {key}", faults) for key in ("title", "about")]
    bases = {
        str(key): _base(each, f"{path.name}: bases.{key}", faults)
        for key, each in _mapping(values.get("bases"), f"{path.name}: bases", faults).items()
    }
    variants = {
        str(key): _variant(each, f"{path.name}: variants.{key}", faults)
        for key, each in _mapping(values.get("variants"), f"{path.name}: variants", faults).items()
    }
    if faults:
        raise ConfigError(faults)
    return Spec(path.stem, texts[0], texts[1], bases, variants)


def _mapping(value: Any, where: str, faults: list[str]) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and value:
        return value
    faults.append(f"{where} must be a mapping that is not empty, but got {value!r}")
    return {}


def _base(value: Any, where: str, faults: list[str]) -> Base:
    if not isinstance(value, Mapping) or value.keys() != {"keys", "seeds", "scale"}:
        faults.append(f"{where} must have exactly keys, seeds and scale, but got {value!r}")
        return Base((), (), "smoke")
    keys = check_value(value["keys"], list[str], f"{where}.keys", faults)
    seeds = check_value(value["seeds"], list[int], f"{where}.seeds", faults)
    if value["scale"] not in ("full", "smoke"):
        faults.append(f"{where}.scale must be full or smoke, but got {value['scale']!r}")
    if isinstance(seeds, list) and (not seeds or any(isinstance(s, int) and s < 0 for s in seeds)):
        faults.append(f"{where}.seeds must hold at least one number, none below 0, but got {seeds!r}")
    return Base(tuple(keys), tuple(seeds), value["scale"])


def _variant(value: Any, where: str, faults: list[str]) -> tuple[str, Any]:
    if not isinstance(value, Mapping) or len(value) != 1:
        count = len(value) if isinstance(value, Mapping) else value
        faults.append(f"{where} must set exactly one key, such as method.without: warmup, but sets {count}")
        return "", None
    ((key, setting),) = value.items()
    return str(key), setting
