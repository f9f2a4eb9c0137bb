"""From a budget to sparsity and bit ranges, before training, and to whole bits, when a run fixes them.

Before training the account is searched: groups removed evenly from every family, one bit width for all quantizers. The
plan nearest to the defaults (half of the groups, 6 bits) whose cost is the budget is taken, and bit widths may differ
from that one by a factor of 1.5. Which groups really go, and which widths are learned, is known late. So the number of
groups is corrected once, when the last of them are chosen, at the plan's bit width; and when the bit widths are fixed
they are corrected, one quantizer at a time, the one whose learned width lies farthest in the direction of the
correction first, until the cost is at most the budget and as close to it as single bits allow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from geta_core.accounting import FLOAT_BITS, Account, macs
from geta_core.budget import TOLERANCE, Budget, Bytes, Latency
from geta_core.clocked_budget import planned_sparsity
from geta_core.config import HIGHEST_BITS, LOWEST_BITS, CompressionConfig
from geta_core.copying import copied
from geta_core.errors import ConfigError, PruningError
from geta_core.qasso.selection import Selector

if TYPE_CHECKING:
    from geta_core.graph import ExampleInputs
    from geta_core.prepared import Prepared

USUAL_SPARSITY, USUAL_BITS = 0.5, 6
HIGHEST_SPARSITY = 0.9
SPREAD = 1.5
"""Factor by which bit widths may lie below and above the plan's."""
AIM, LOW_AIM = 0.97, 0.8
"""Share of the budget that the plan aims at; the second where its bit widths cannot be lowered."""
LEAST = 0.7
"""Share of the budget that a plan must reach where bit widths can rise for the rest."""

Bits = Mapping[str, Tensor]


class Plan(NamedTuple):
    """One setting and its cost."""

    cost: float
    removed: int
    bits: int


class Planned(NamedTuple):
    """What a budget was turned into."""

    config: CompressionConfig
    """With sparsity and bit ranges."""
    budget: Budget | None
    bits: int
    """Width at which the cost of a choice of groups is judged."""


def planned(model: nn.Module, inputs: ExampleInputs, config: CompressionConfig) -> Planned:
    """Return the configuration with sparsity and bit ranges that meet its budget; without a budget, itself.

    Args:
        model: as it came; it is not changed.
        inputs: example.
        config: of the run.

    Raises:
        ConfigError: if no setting meets the budget, with the range that can be met.
    """
    if config.budget is None:
        return Planned(config, None, 0)
    twin = _twin(model, inputs, config)
    if isinstance(config.budget, Latency):
        sparsity = planned_sparsity(twin, config.budget, HIGHEST_SPARSITY)
        bits = USUAL_BITS
    else:
        plan, count = _search(twin, config, config.budget)
        bits = plan.bits
        # A little more than the share, so that its product with the number of groups is cut to the number meant.
        sparsity = (plan.removed + 0.01) / count if plan.removed else 0.0
    window = _range(bits, config)
    inputs_too = window if config.budget.activations else None
    found = dataclasses.replace(config, sparsity=sparsity, weight_bits=window, activation_bits=inputs_too, budget=None)
    return Planned(found, config.budget, bits)


def _twin(model: nn.Module, inputs: ExampleInputs, config: CompressionConfig) -> Prepared:
    """A prepared copy with quantizers where the run will have them."""
    from geta_core.prepared import prepare

    assert config.budget is not None
    names = {id(module): name for name, module in model.named_modules()}
    names |= {id(pin): pin for pin in config.pin if isinstance(pin, str)}
    widest = (LOWEST_BITS, HIGHEST_BITS)
    open_config = dataclasses.replace(
        config,
        budget=None,
        sparsity=0.0,
        weight_bits=widest,
        activation_bits=widest if config.budget.activations else None,
        initial_bits=HIGHEST_BITS,
        allowed_bits=None,
        pin=tuple(pin if isinstance(pin, str) else names[id(pin)] for pin in config.pin if id(pin) in names),
    )
    return prepare(copied(model), inputs, open_config)


def _range(bits: int, config: CompressionConfig) -> tuple[int, int]:
    """The window of bit widths around the plan's."""
    low = max(LOWEST_BITS, math.floor(bits / SPREAD))
    high = min(config.initial_bits, math.ceil(bits * SPREAD))
    if config.allowed_bits is not None:
        below = [width for width in config.allowed_bits if width < bits] or [config.allowed_bits[0]]
        above = [width for width in config.allowed_bits if width > bits] or [config.allowed_bits[-1]]
        return below[-1], above[0]
    return low, max(high, low)


def cost_of(account: Account, dead: Tensor, budget: Budget) -> Callable[[Bits], float]:
    """Return the cost of any bit widths (by site, shaped like its step), in the unit of the budget.

    Args:
        account: of the prepared model.
        dead: removed groups, bool [num_prunable].
        budget: says what is counted.
    """
    if isinstance(budget, Bytes):
        return account.storage(dead).bytes
    floats = dict.fromkeys((site.name for site in account.sites), float(FLOAT_BITS))
    dense = macs(account.layers(torch.zeros_like(dead), floats)) * FLOAT_BITS**2
    rows = account.layers(dead, floats)
    # Channels that are removed have no bits.
    stays = {
        weight.site: (weight.axis or 0, weight.index)
        for weight in account.storage(dead).packed
        if weight.index is not None
    }
    terms = [
        (row.macs, product.weight_site, product.input_site)
        for row, product in zip(rows, account.products, strict=True)
        if row.counted
    ]

    def relative(bits: Bits) -> float:
        means = {name: _mean(value, stays.get(name)) for name, value in bits.items()}
        wide = ((size, *(FLOAT_BITS if site is None else means[site.name] for site in pair)) for size, *pair in terms)
        return sum(size * weight * inputs for size, weight, inputs in wide) / dense if dense else 0.0

    return relative


def _least(bits: int, config: CompressionConfig) -> float:
    """Share of the budget that a plan at these bits must reach."""
    return LEAST if _range(bits, config)[1] > bits else 1 - TOLERANCE


def _mean(value: Tensor, stays: tuple[int, Tensor] | None) -> float:
    if value.numel() == 1:
        return float(value.item())
    kept = value if stays is None else value.index_select(stays[0], stays[1].to(value.device))
    return float(kept.double().mean())


def fewest_removed(cost: Callable[[int], float], limit: float, low: int, high: int) -> int:
    """Return the smallest number in [low, high] whose cost, which falls, is at most the limit; ``high`` if none is."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    return low


def _search(twin: Prepared, config: CompressionConfig, budget: Budget) -> tuple[Plan, int]:
    """The plan nearest to the defaults, and the number of groups."""
    selector = Selector(
        twin.family, sparsity=HIGHEST_SPARSITY, min_kept=config.min_kept, divisible_by=config.divisible_by
    )
    widths = config.allowed_bits or range(LOWEST_BITS, config.initial_bits + 1)
    shapes = {site.name: torch.ones_like(site.quantizer.d.detach()) for site in twin.sites}

    def cost(bits: int, count: int) -> float:
        found = costs.get(count)
        if found is None:
            found = costs[count] = cost_of(twin.account, evenly(twin.family, count, selector), budget)
        return found({name: bits * ones for name, ones in shapes.items()})

    costs: dict[int, Callable[[Bits], float]] = {}
    plans = []
    for bits in widths:
        aim = AIM if _range(bits, config)[0] < bits else LOW_AIM
        count = fewest_removed(partial(cost, bits), aim * budget.limit, 0, selector.target)
        plans.append(Plan(cost(bits, count), count, bits))
    meets = [plan for plan in plans if _least(plan.bits, config) * budget.limit <= plan.cost <= budget.limit]
    if not meets:
        ends = [cost(bits, count) for count in (0, selector.target) for bits in (widths[0], widths[-1])]
        raise ConfigError(
            [
                f"budget: {budget.limit:.6g} {budget.unit} cannot be met; with up to {HIGHEST_SPARSITY:.0%} of the "
                f"groups removed and {widths[0]} to {widths[-1]} bits the range is {min(ends):.6g} to {max(ends):.6g}"
            ]
        )
    groups = max(selector.num_groups, 1)

    def distance(plan: Plan) -> float:
        return math.log2(plan.bits / USUAL_BITS) ** 2 + (2 * (plan.removed / groups - USUAL_SPARSITY)) ** 2

    return min(meets, key=distance), groups


def evenly(family: Tensor, count: int, selector: Selector) -> Tensor:
    """Return ``count`` removed groups, bool [num_prunable], the same share of every family as far as it goes."""
    sizes = torch.bincount(family) if len(family) else family
    place = torch.zeros(len(family), dtype=torch.float64)
    for number in range(len(sizes)):
        own = torch.nonzero(family == number).flatten()
        place[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    return selector.choose(place, torch.zeros(len(family), dtype=torch.bool), count)


def fitted(
    cost: Callable[[Bits], float],
    limit: float,
    whole: Bits,
    learned: Bits,
    choices: Mapping[str, Sequence[int]],
) -> dict[str, Tensor]:
    """Return whole bit widths whose cost is at most ``limit`` and as close to it as single changes come.

    A quantizer with several entries (per channel) moves as one: every entry to its next choice.

    Args:
        cost: of bit widths by site; it never falls when a width rises.
        limit: not to be exceeded.
        whole: bit widths to start from, long.
        learned: the widths before they were rounded.
        choices: rising widths that each site may have.

    Raises:
        PruningError: if the lowest widths still cost more.
    """
    bits = {name: value.clone() for name, value in whole.items()}

    def pull(name: str, sign: int) -> float:
        return sign * float((learned[name].double() - bits[name]).mean())

    while cost(bits) > limit:
        lower = {name: _step(bits[name], choices[name], -1) for name in bits}
        open_sites = [name for name in bits if not torch.equal(lower[name], bits[name])]
        if not open_sites:
            raise PruningError(
                f"the budget of {limit:.6g} cannot be met: the lowest bit widths still cost {cost(bits):.6g}"
            )
        name = min(open_sites, key=lambda site: pull(site, 1))
        bits[name] = lower[name]
    while True:
        trials = (
            {**bits, name: _step(bits[name], choices[name], 1)} for name in sorted(bits, key=lambda n: -pull(n, 1))
        )
        better = next((t for t in trials if cost(bits) < cost(t) <= limit), None) or _exchanged(
            cost, limit, bits, choices
        )
        if better is None:
            return bits
        bits = better


def _exchanged(
    cost: Callable[[Bits], float], limit: float, bits: Bits, choices: Mapping[str, Sequence[int]]
) -> dict[str, Tensor] | None:
    """One quantizer raised and one lowered so that the cost comes closest to the limit; None where it is close."""
    now = cost(bits)
    if now >= (1 - TOLERANCE / 2) * limit:
        return None
    best, found = now, None
    for up in bits:
        raised = {**bits, up: _step(bits[up], choices[up], 1)}
        for down in bits:
            trial = {**raised, down: _step(bits[down], choices[down], -1)}
            if down != up and best < (value := cost(trial)) <= limit:
                best, found = value, trial
    return found


def _step(bits: Tensor, choices: Sequence[int], sign: int) -> Tensor:
    """Every entry at the next choice below (-1) or above (1), or where it is."""
    table = torch.tensor(sorted(choices), device=bits.device)
    at = torch.searchsorted(table, bits.contiguous())
    return table[(at + sign).clamp(0, len(table) - 1)]
