"""Whether a method whose training decides groups and bits can meet a relative BOPs at all; checked before the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from baselines.helpers.gauge import Gauge, float_model
from baselines.helpers.targets import TOLERANCE
from geta_core.errors import ConfigError
from geta_core.qasso.selection import Selector

Range = tuple[int, int] | None


def demand_reachable(
    target: float, model: nn.Module, example_inputs: Any, weights: Range, inputs: Range, min_kept: int | None
) -> None:
    """Compare a target with the cheapest and the dearest that the bounds allow.

    Args:
        target: relative BOPs.
        model: the float model.
        example_inputs: as ``geta.prepare`` takes them.
        weights: bounds of the weights' bit widths; None where they stay in floating point.
        inputs: those of the inputs.
        min_kept: fewest groups that stay in each family; None where no groups are removed.

    Raises:
        ConfigError: with the range that can be met.
    """
    reachable_inputs(target, model, example_inputs, weights, [inputs], min_kept)


def reachable_inputs(
    target: float,
    model: nn.Module,
    example_inputs: Any,
    weights: Range,
    inputs: Sequence[Range],
    min_kept: int | None,
) -> Range:
    """Return the first bounds of the inputs' bit widths with which a target can be met; see ``demand_reachable``.

    Raises:
        ConfigError: where none of them will do, with the range that can be met by all of them together.
    """
    gauge = Gauge.of(float_model(model, example_inputs))
    sparsity = 0.0 if min_kept is None else 1.0
    selector = Selector(gauge.prepared.family, sparsity=sparsity, min_kept=min_kept or 1, divisible_by=1)
    ends = []
    for each in inputs:
        low, high = (
            gauge.relative_bops(gauge.evenly(count, selector), *_at(end, weights, each))
            for end, count in ((0, selector.target), (1, 0))
        )
        if low * (1 - TOLERANCE) <= target <= high * (1 + TOLERANCE):
            return each
        ends += [low, high]
    raise ConfigError(
        [
            f"method.match_bops={target:g} cannot be met: with the bounds of weight_bits and activation_bits the "
            f"range is {min(ends):.4g} to {max(ends):.4g}"
        ]
    )


def _at(end: int, *bounds: Range) -> list[int | None]:
    return [None if each is None else each[end] for each in bounds]
