"""Finds things by name: built in, installed by another package as an entry point, or given as ``package.module:name``.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from geta_core.errors import ConfigError, closest


def load_object(kind: str, path: str) -> Callable[..., Any]:
    """Import ``package.module:name``.

    Args:
        kind: what is looked for, used in messages ("method", "task", "model").
        path: the module and the name in it, joined by a colon.

    Raises:
        ConfigError: when the module or the name in it does not exist, or is no class or function.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError([f"{kind}={path}: a path must have the form package.module:name"])
    if os.getcwd() not in sys.path:  # a console script does not search the current directory by itself
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises is the user's to see, in one line
        text = " ".join(str(error).split())
        raise ConfigError([f"{kind}={path}: importing {module_name} failed: {type(error).__name__}: {text}"]) from error
    found = getattr(module, name, None)
    if found is None:
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ConfigError([f"{kind}={path}: the module {module_name!r} holds no {name!r}{closest(name, public)}"])
    if not callable(found):
        raise ConfigError([f"{kind}={path} must be a class or a function, but is a {type(found).__name__}"])
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Registry:
    """One kind of thing that a user can name.

    Attributes:
        kind: the word for it in messages.
        builtin: name -> ``package.module:name`` of those that come with this project.
        group: entry-point group under which other packages offer theirs.
    """

    kind: str
    builtin: Mapping[str, str]
    group: str

    def names(self) -> list[str]:
        """Every name that needs no path, sorted."""
        return sorted({*self.builtin, *(point.name for point in entry_points(group=self.group))})

    def resolve(self, name: str) -> Callable[..., Any]:
        """Return the class or function behind a name or a ``package.module:name`` path.

        Raises:
            ConfigError: for an unknown name, with the closest known one.
        """
        if ":" in name:
            return load_object(self.kind, name)
        if name in self.builtin:
            return load_object(self.kind, self.builtin[name])
        for point in entry_points(group=self.group):
            if point.name == name:
                return load_object(self.kind, point.value)
        raise ConfigError([f"unknown {self.kind} {name!r}{closest(name, self.names())}"])


METHODS = Registry(
    "method",
    {
        "dense": "baselines.dense:Dense",
        "geta": "baselines.geta:Geta",
        # One after the other: pruning, quantization, or both.
        "ptq_only": "baselines.ptq_only:PtqOnly",
        "qat_only": "baselines.qat_only:QatOnly",
        "prune_only": "baselines.prune_only:PruneOnly",
        "prune_then_ptq": "baselines.prune_then_ptq:PruneThenPtq",
        "prune_then_qat": "baselines.prune_then_qat:PruneThenQat",
        "quantize_then_prune": "baselines.quantize_then_prune:QuantizeThenPrune",
        "obc": "baselines.obc:Obc",
        # Both at once.
        "djpq": "baselines.djpq:Djpq",
        "djpq_restrict": "baselines.djpq:DjpqRestrict",
        "bayesian_bits": "baselines.bayesian_bits:BayesianBits",
        "qst_b": "baselines.qst_b:QstB",
        "annc": "baselines.annc:Annc",
        "clip_q": "baselines.clip_q:ClipQ",
        # Through another library.
        "pat": "baselines.torchao_rivals.pat:Pat",
        "parq": "baselines.torchao_rivals.parq:Parq",
    },
    "geta.methods",
)
