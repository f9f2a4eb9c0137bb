"""A latency budget: the numbers of removed groups whose slimmed twins are fast enough, found with a clock.

The clock decides twice. Before training, with groups removed at random, it finds the sparsity that a run begins with.
When the last groups are chosen, it times the model without those very groups, and without more or fewer of them: one of
these is the shape that will be finished. Time does not fall evenly with the number of channels, since kernels compute
whole blocks of them, so every measurement is kept and the slowest one that is fast enough wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from geta_core.budget import TOLERANCE, Latency
from geta_core.copying import copied
from geta_core.errors import ConfigError, GetaError
from geta_core.qasso.selection import Selector

if TYPE_CHECKING:
    from geta_core.prepared import Prepared

AIM = 1 - TOLERANCE / 2
"""Share of the budget that is aimed at: the middle of what is promised, since clocks are noisy on both sides."""
TRIALS = 8
"""Numbers of groups that are timed between the ends."""
REPEATS = 200
"""Passes of each; a choice by few of them would favour what was fast by chance."""

Answer = TypeVar("Answer")
Choice = Callable[[int], Tensor]
"""Gives the removed groups, bool [num_prunable], for a number of them."""


def planned_sparsity(twin: Prepared, budget: Latency, highest: float) -> float:
    """Return a sparsity at which a twin of the model without random groups meets the budget.

    Args:
        twin: a prepared copy of the model, without a range for bits or sparsity.
        budget: to be met.
        highest: largest sparsity.

    Raises:
        ConfigError: if the twin with the fewest groups is too slow.
    """
    config = twin.config
    order = torch.rand(twin.num_prunable, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    selector = Selector(twin.family, sparsity=highest, min_kept=config.min_kept, divisible_by=config.divisible_by)

    def choose(removed: int) -> Tensor:
        return selector.choose(order, twin.none_dead(), removed)

    def seconds(removed: int) -> float:
        return seconds_without(twin, choose(removed), budget.batch)

    def sparsity() -> float:
        slowest, fastest = seconds(0), seconds(selector.target)
        if fastest > AIM * budget.seconds:
            raise ConfigError(
                [
                    f"budget: {budget.seconds:.3g} seconds cannot be met; randomly pruned twins take {slowest:.3g} s "
                    f"whole and {fastest:.3g} s with {highest:.0%} of the groups removed"
                ]
            )
        if slowest <= budget.seconds:
            return 0.0
        removed = _search(seconds, AIM * budget.seconds, 0, selector.target)
        # A little more than the share, so that its product with the number of groups is cut to the number meant.
        return (removed + 0.01) / twin.num_prunable

    return _as_the_first_rank(sparsity)


def removed_within(prepared: Prepared, budget: Latency, choose: Choice, low: int, high: int) -> int:
    """Return how many groups are to be removed so that the model without them meets the budget; ``high`` if none do.

    Args:
        prepared: of the run; it stays as it is.
        budget: to be met.
        choose: gives the removed groups for a number of them.
        low: number of groups that are removed already.
        high: largest number.
    """

    def seconds(count: int) -> float:
        return seconds_without(prepared, choose(count).cpu(), budget.batch)

    def removed() -> int:
        return low if seconds(low) <= AIM * budget.seconds else _search(seconds, AIM * budget.seconds, low, high)

    return _as_the_first_rank(removed)


def seconds_without(prepared: Prepared, dead: Tensor, batch: int) -> float:
    """Return the median seconds of a forward pass of the slimmed float model without some groups.

    Args:
        prepared: stays as it is.
        dead: bool [num_prunable], the groups that are removed besides those that are zero.
        batch: examples in a pass.
    """
    from geta_core.accounting.latency import forward_seconds
    from geta_core.finishing import finish
    from geta_core.slim.verify import without_input_quantizers

    own = copied(prepared)
    own.optimizer = None
    own.zero_(torch.nonzero(dead).flatten().tolist())
    slim = without_input_quantizers(finish(own, early=True).model)
    return forward_seconds(slim, own.inputs, batch, REPEATS).median


def _search(seconds: Callable[[int], float], limit: float, low: int, high: int) -> int:
    """Return the number whose time is the longest of those measured that are within the limit; ``high`` if none is."""
    within: dict[int, float] = {}
    best = high
    for _ in range(TRIALS):
        if low >= high:
            break
        middle = (low + high) // 2
        spent = seconds(middle)
        if spent <= limit:
            within[middle] = spent
            high = middle
        else:
            low = middle + 1
    return max(within, key=within.__getitem__, default=best)


def _as_the_first_rank(decide: Callable[[], Answer]) -> Answer:
    """Return what the first worker finds: no two clocks agree, but all workers must remove the same groups."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return decide()
    told: list[Answer | str | None] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = decide()
        except GetaError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told, src=0)
    answer, fault = told
    if fault is not None:
        raise GetaError(str(fault))
    return answer  # type: ignore[return-value]
