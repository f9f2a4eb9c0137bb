"""Every family of the zoo, by name."""

from __future__ import annotations

from functools import cache

from tests.zoo.families import attention, cases, generators, language, senses, timm, torchvision
from tests.zoo.family import Family

SOURCES = (torchvision, timm, language, senses, cases, attention, generators)


@cache
def every() -> dict[str, Family]:
    """All families; none of their packages is imported before a model is built."""
    found: dict[str, Family] = {}
    for source in SOURCES:
        for family in source.families():
            if family.name in found:
                raise ValueError(f"two families are called {family.name!r}")
            found[family.name] = family
    return found
