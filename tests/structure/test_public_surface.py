"""The public names of the engine and their signatures change only on purpose."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import geta_core

GOLDEN = Path(__file__).with_name("public_surface.txt")


def _signature(function: Callable[..., object]) -> str:
    """Return the signature; addresses of default objects, which change from run to run, are left out."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(function)))


def _members(cls: type) -> list[str]:
    """Return the public fields, properties and methods that the class itself or a class of ours above it defines."""
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "geta_core"]
    described = {field.name: f"{field.name}: {field.type}" for field in fields(cls)} if is_dataclass(cls) else {}
    for base in reversed(ours):
        for name, value in vars(base).items():
            if name[0] == "_" or name in described:
                continue
            if isinstance(value, property):
                described[name] = f"{name}: property"
            elif isinstance(value, (classmethod, staticmethod)):
                described[name] = f"{type(value).__name__} {name}{_signature(value.__func__)}"
            elif inspect.isfunction(value):
                described[name] = f"{name}{_signature(value)}"
    return [f"    {described[name]}" for name in sorted(described)]


def _describe(name: str, value: object) -> list[str]:
    if isinstance(value, type):
        # The signature of a class that inherits its constructor from Python itself differs between versions.
        own = any("__init__" in vars(base) and base.__module__.startswith("geta_core") for base in value.__mro__)
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        return [f"class {name}({bases})" + (f" {_signature(value)}" if own else ""), *_members(value)]
    if callable(value):
        return [f"def {name}{_signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def test_public_surface_is_frozen(golden: Callable[[Path, str], None]) -> None:
    names = geta_core.__all__
    assert len(names) == len(set(names)) > 0
    lines = [line for name in sorted(names) for line in _describe(name, getattr(geta_core, name))]
    golden(GOLDEN, "\n".join(lines) + "\n")


def test_every_public_name_is_documented() -> None:
    silent = [name for name in geta_core.__all__ if callable(value := getattr(geta_core, name)) and not value.__doc__]
    assert not silent, f"without a docstring: {silent}"


def test_every_public_function_is_typed() -> None:
    untyped = []
    for name in geta_core.__all__:
        value = getattr(geta_core, name)
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            annotations = [parameter.annotation for parameter in signature.parameters.values()]
            if inspect.Signature.empty in (*annotations, signature.return_annotation):
                untyped.append(name)
    assert not untyped
