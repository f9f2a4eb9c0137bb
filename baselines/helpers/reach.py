"""Whether a method whose training decides groups and bits can meet a relative BOPs at all; checked before the run."""

from __future__ import annotations

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
    gauge = Gauge.of(float_model(model, example_inputs))
    sparsity = 0.0 if min_kept is None else 1.0
    selector = Selector(gauge.prepared.family, sparsity=sparsity, min_kept=min_kept or 1, divisible_by=1)
    ends = []
    for end, count in ((0, selector.target), (1, 0)):
        pair = [None if bounds is None else bounds[end] for bounds in (weights, inputs)]
        ends.append(gauge.relative_bops(gauge.evenly(count, selector), *pair))
    low, high = ends
    if not low * (1 - TOLERANCE) <= target <= high * (1 + TOLERANCE):
        raise ConfigError(
            [
                f"method.match_bops={target:g} cannot be met: with the bounds of weight_bits and activation_bits the "
                f"range is {low:.4g} to {high:.4g}"
            ]
        )
