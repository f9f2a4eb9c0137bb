"""``method.match_bops``: sparsity and bit widths at which a method meets a relative BOPs, found without training.

The knobs are the fields ``sparsity`` (share of the groups), ``weight_bits`` and ``activation_bits`` (whole numbers)
of a method, whichever it has. The rule: bit widths stay as asked where some sparsity of at most ``HIGHEST_SPARSITY``
meets the target with them; else the nearest bit widths with which one does. Costs come from the accountant, for
groups removed evenly from every family; which groups really go is known only when they are chosen, and there the
method corrects the number (``baselines.helpers.pruner``), so that the finished model meets the target and not only
the plan.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, cast

from torch import nn

from baselines.helpers.gauge import Bits, Gauge, float_model
from baselines.schema import Bounds
from geta_core.config import HIGHEST_BITS, LOWEST_BITS
from geta_core.errors import ConfigError
from geta_core.planning import fewest_removed
from geta_core.qasso.selection import Selector

TOLERANCE = 0.1
"""Largest relative difference between what is asked for and what is met."""
HIGHEST_SPARSITY = 0.9
"""Sparsity above which lower bit widths are preferred; it bounds nothing where a method has no bit widths."""
KEY = "match_bops"
KNOBS = ("sparsity", "weight_bits", "activation_bits")

Target = Annotated[float, Bounds(0, 1, above=True)] | str | None


@dataclass(frozen=True, kw_only=True)
class Targeted:
    """A method that can be asked for a relative BOPs and meets it by itself."""

    match_bops: Target = None
    """Relative BOPs (0.01) to meet within 10 %, or a finished run whose BOPs are met; null: no such target."""

    def matched(self, model: nn.Module, example_inputs: Any) -> Self:
        """Return this method with ``match_bops`` as a number.

        Raises:
            ConfigError: when the target is no number or run.
        """
        return replace(self, match_bops=target_of(self.match_bops))

    @property
    def target_bops(self) -> float | None:
        """The number to meet; None where none is asked for."""
        return target_of(self.match_bops)


@dataclass(frozen=True, kw_only=True)
class Matching(Targeted):
    """A method whose sparsity and bit widths are found by search."""

    def matched(self, model: nn.Module, example_inputs: Any) -> Self:
        """Return this method with knobs that meet the target; ``match_bops`` is the target's number then.

        Raises:
            ConfigError: when the target is no number or run, or cannot be met, with the range that can.
        """
        target = self.target_bops
        if target is None:
            return self
        found = search(self, Gauge.of(float_model(model, example_inputs)), target)
        return replace(self, **found, match_bops=target)

    def knobs(self) -> tuple[str, ...]:
        """Return the fields that move the BOPs."""
        return tuple(field.name for field in fields(self) if field.name in KNOBS)


class Plan(NamedTuple):
    """One setting of the knobs, and what it costs."""

    relative_bops: float
    removed: int
    weight_bits: Bits
    input_bits: Bits


def meets(relative_bops: float, target: float | None) -> bool:
    """Whether relative BOPs lie within the tolerance of a target; without a target they do."""
    return target is None or abs(relative_bops / target - 1) <= TOLERANCE


def target_of(value: float | str | None) -> float | None:
    """Return the relative BOPs that are asked for: the number itself, or that of a run's directory or result.json.

    Raises:
        ConfigError: for a path that is no result of a run.
    """
    if value is None or isinstance(value, (int, float)):
        return value
    path = Path(value).expanduser()
    path = path / "result.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["relative_bops"]
        if isinstance(found, (int, float)) and 0 < found <= 1:
            return float(found)
        reason = f"its relative_bops is {found!r}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ConfigError(
        [f"method.{KEY} must be a number in (0, 1] or a finished run's directory or result.json: {path}, {reason}"]
    )


def search(method: Matching, gauge: Gauge, target: float) -> dict[str, Any]:
    """Return the values of a method's knobs that meet the target.

    Args:
        method: with some of the knobs; ``min_kept`` and ``divisible_by`` are obeyed where it has them.
        gauge: of the float model.
        target: relative BOPs.

    Raises:
        ConfigError: when no setting is within ``TOLERANCE``, with the range that can be met.
    """
    asked: dict[str, Any] = {name: getattr(method, name) for name in method.knobs()}
    selector = Selector(
        gauge.prepared.family,
        sparsity=1.0 if "sparsity" in asked else 0.0,
        min_kept=getattr(method, "min_kept", 1),
        divisible_by=getattr(method, "divisible_by", 1),
    )
    highest = selector.target
    pairs = list(_pairs(asked.get("weight_bits"), asked.get("activation_bits")))
    if len(pairs) > 1:
        highest = min(highest, int(HIGHEST_SPARSITY * selector.num_groups))
    plans = [best_plan(gauge, selector, highest, pair, target) for pair in pairs]
    met = [plan for plan in plans if meets(plan.relative_bops, target)]
    if not met:
        raise ConfigError([_unreachable(gauge, selector, highest, pairs, plans, target)])
    found = met[0]
    values: dict[str, Any] = {"weight_bits": found.weight_bits, "activation_bits": found.input_bits}
    # A little more than the share, so that its product with the number of groups is cut to the number meant.
    values["sparsity"] = (found.removed + 0.01) / selector.num_groups if found.removed else 0.0
    return {name: values[name] for name in asked}


def best_plan(gauge: Gauge, selector: Selector, highest: int, bits: tuple[Bits, Bits], target: float) -> Plan:
    """Return the plan nearest to the target at these bit widths, by bisection over the number of removed groups."""

    def cost(count: int) -> float:
        return gauge.relative_bops(gauge.evenly(count, selector), *bits)

    count = fewest_removed(cost, target, 0, highest)
    around = sorted({max(count - 1, 0), count})
    return min((Plan(cost(each), each, *bits) for each in around), key=lambda plan: abs(plan.relative_bops - target))


def refuse(name: str, target: Callable[..., Any], section: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """Return the keys of a method without ``match_bops`` where it has no such knob, which is a fault.

    Args:
        name: of the method, for the message.
        target: its class.
        section: keys as given.
        faults: the fault is appended here.
    """
    from baselines.schema import options_of, takes_any

    if KEY not in section or KEY in options_of(target) or takes_any(target):
        return dict(section)
    if section[KEY] is not None:
        faults.append(
            f"method.{KEY} cannot be met by {name}, which has no knob for it (it needs a single sparsity or single bit "
            "widths); leave it out, or match the other methods to this one's result.json"
        )
    return {key: value for key, value in section.items() if key != KEY}


def _pairs(weight_bits: Bits, input_bits: Bits) -> Iterator[tuple[Bits, Bits]]:
    """Yield pairs of bit widths, the nearest to what is asked for first; floating point stays floating point."""
    widths = range(LOWEST_BITS, HIGHEST_BITS + 1)
    choices = [widths if bits is not None else (None,) for bits in (weight_bits, input_bits)]

    def distance(pair: tuple[Bits, ...]) -> float:
        both = zip(pair, (weight_bits, input_bits), strict=True)
        return sum(math.log2(bits / wish) ** 2 for bits, wish in both if bits is not None and wish is not None)

    # Of pairs as far away, the wider goes first.
    wider = sorted(itertools.product(*choices), key=lambda pair: -sum(bits or 0 for bits in pair))
    yield from cast(list[tuple[Bits, Bits]], sorted(wider, key=distance))


def _unreachable(
    gauge: Gauge,
    selector: Selector,
    highest: int,
    pairs: list[tuple[Bits, Bits]],
    plans: list[Plan],
    target: float,
) -> str:
    ends = [gauge.relative_bops(gauge.evenly(count, selector), *pair) for pair in pairs for count in (0, highest)]
    nearest = min(plans, key=lambda plan: abs(math.log(plan.relative_bops / target)))
    share = nearest.removed / selector.num_groups if selector.num_groups else 0.0
    how = ", ".join(
        [f"sparsity {share:.3f}"] * bool(highest)
        + [
            f"{kind} at {bits} bits"
            for kind, bits in (("weights", nearest.weight_bits), ("inputs", nearest.input_bits))
            if bits is not None
        ]
    )
    return (
        f"method.{KEY}={target:.6g} cannot be met within {TOLERANCE:.0%}: the range is {min(ends):.4g} to "
        f"{max(ends):.4g}, and the nearest that can be met is {nearest.relative_bops:.4g} ({how or 'no knob moves it'})"
    )
