"""What a comparison gives each method, so that its rows differ in the method and in nothing else.

``match=bops`` gives every method that has the knob ``match_bops`` the relative BOPs that GETA ended with, seed by seed,
and lets it quantize what GETA's setting quantizes: layer inputs stay in floating point where they do there, and are
quantized where they are, also in methods that leave them in floating point by default. Single bit widths begin at
GETA's averages, rounded up, and not at a default of 8: a method that prunes as well then divides the target between
groups and bits as GETA does, and one that cannot prune has the nearest bit widths that meet it. Methods that choose
bit widths within bounds keep their own bounds.

``start=dense`` lets every method begin with the trained dense model of its seed, one file for all of them. Methods that
are published as post-training or fine-tuning need it; those published as training from scratch get it too, because the
dense run's steps would else be more than the others have.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

from baselines.helpers.dense_start import DenseStart
from baselines.matching import KEY
from baselines.registry import METHODS
from baselines.schema import Option, check_value, options_of
from orchestration.config import Config
from orchestration.result import RunResult

Match = Literal["bits", "bops", "nothing"]
Start = Literal["dense", "scratch"]
BITS = ("weight_bits", "activation_bits")


def has_knob(method: str) -> bool:
    """Whether a method can be asked for a relative BOPs."""
    return KEY in options_of(METHODS.resolve(method))


def dense_start(method: str, dense: RunResult) -> list[str]:
    """Return the keys with which a method starts from the model of a dense run; post-training methods train no more."""
    found = METHODS.resolve(method)
    post_training = inspect.isclass(found) and issubclass(found, DenseStart)
    return [f"model.weights={dense.directory}", *["method.train=false"] * post_training]


def matched(method: str, match: Match, reference: Config, result: RunResult) -> list[str]:
    """Return the keys that give a method what the reference ended with.

    Args:
        method: that is given something.
        match: what is given.
        reference: configuration of the reference, GETA.
        result: of the reference with the same seed.
    """
    asked: dict[str, Any] = reference.flat()
    floating = {key: asked[f"method.{key}"] is None for key in BITS}
    average = {"weight_bits": result.weight_bits, "activation_bits": result.activation_bits}
    rounded = {key: None if floating[key] else math.ceil(average[key]) for key in BITS}
    if match == "bits" and method in ("qat_only", "prune_then_ptq"):
        keys = [f"method.{key}={_written(width)}" for key, width in rounded.items()]
        return [*keys, f"method.sparsity={asked['method.sparsity']}"] if method == "prune_then_ptq" else keys
    if match != "bops" or not has_knob(method):
        return []
    known = options_of(METHODS.resolve(method))
    given = [
        f"method.{key}={_written(width)}"
        for key, width in rounded.items()
        if key in known and _takes(known[key], width)
    ]
    return [f"method.{KEY}={result.relative_bops:.6g}", *given]


def _takes(option: Option, value: Any) -> bool:
    faults: list[str] = []
    check_value(value, option.annotation, option.name, faults)
    return not faults


def _written(width: int | None) -> str:
    return "null" if width is None else str(width)
