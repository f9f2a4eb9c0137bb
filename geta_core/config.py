"""What the user asks of a compression: sparsity, bit ranges, policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, cast

from torch import nn

from geta_core.budget import Budget
from geta_core.errors import ConfigError

LOWEST_BITS, HIGHEST_BITS = 2, 16
FOUND = ("sparsity", "weight_bits", "activation_bits")
"""What a budget decides."""


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """Targets and policy of one compression run; every fault is reported at once.

    Raises:
        ConfigError: naming each field that is out of its bounds.
    """

    sparsity: float = 0.5
    """Fraction of the prunable groups that are exactly zero at the end, 0 <= sparsity < 1."""
    weight_bits: tuple[int, int] | None = (4, 8)
    """Range of the weights' bit widths that is promised at the end; None leaves the weights in floating point."""
    activation_bits: tuple[int, int] | None = None
    """Range of the layer inputs' bit widths that is promised at the end; None leaves the inputs in floating point."""
    initial_bits: int = 16
    """Bit width at which every quantizer starts, at least the upper ends of both ranges."""
    per_channel: bool = False
    """One (d, q_m, t) per output channel of a weight instead of one per tensor."""
    learn_exponent: bool = True
    """Whether the weights' exponent t is learned; otherwise it stays 1."""
    learn_activation_exponent: bool = False
    """Whether the inputs' exponent t is learned; otherwise it stays 1."""
    heads: Literal["head", "head_dim"] = "head"
    """Remove whole attention heads, or the same index inside every head."""
    pin: tuple[nn.Module | str, ...] = ()
    """Modules, or names of modules or parameters, that are never pruned."""
    divisible_by: int = 1
    """Kept groups of a family are a multiple of this number."""
    min_kept: int = 1
    """Fewest groups that are kept in each family."""
    prune_normalized: bool = False
    """Also prune channels that enter a LayerNorm, and residual streams that enter an RMS norm or another mean; their
    removal is then inexact, and flagged."""
    recompute: bool = False
    """Recompute quantized values in the backward pass instead of storing them: less memory, more time."""
    allowed_bits: tuple[int, ...] | None = None
    """Bit widths that a quantizer may have at the end, such as (2, 4, 8); None allows every whole number."""
    budget: Budget | None = None
    """What the finished model may cost: Bops, Bytes or Latency. ``sparsity``, ``weight_bits`` and ``activation_bits``
    are then found, and must stay at their defaults here."""

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "allowed_bits"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        pin = self.pin if isinstance(self.pin, Sequence) and not isinstance(self.pin, str) else (self.pin,)
        object.__setattr__(self, "pin", tuple(pin))
        faults = [
            *_sparsity_faults(self.sparsity),
            *_range_faults("weight_bits", self.weight_bits, self.initial_bits),
            *_range_faults("activation_bits", self.activation_bits, self.initial_bits),
            *_count_faults(self),
            *_allowed_faults(self),
            *_budget_faults(self),
        ]
        if self.heads not in ("head", "head_dim"):
            faults.append(f"heads must be 'head' or 'head_dim', but got {self.heads!r}")
        if faults:
            raise ConfigError(faults)

    def widths(self, bounds: tuple[int, int] | None) -> tuple[int, ...]:
        """Rising bit widths that a quantizer with these bounds may have at the end; without bounds, all up to 16."""
        low, high = bounds or (LOWEST_BITS, HIGHEST_BITS)
        return tuple(bits for bits in self.allowed_bits or range(low, high + 1) if low <= bits <= high)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sparsity_faults(sparsity: object) -> list[str]:
    if isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool) and 0 <= sparsity < 1:
        return []
    return [f"sparsity must be a number with 0 <= sparsity < 1, but got {sparsity!r}"]


def _range_faults(name: str, value: object, initial: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, tuple) or len(value) != 2 or not all(_is_int(bits) for bits in value):
        return [f"{name} must be two whole numbers (lowest, highest) or null, but got {value!r}"]
    low, high = cast(tuple[int, int], value)
    if low > high:
        return [
            f"{name}: the lowest must not exceed the highest, but got ({low}, {high}); did you mean ({high}, {low})?"
        ]
    if low < LOWEST_BITS or high > HIGHEST_BITS:
        return [f"{name} must lie in [{LOWEST_BITS}, {HIGHEST_BITS}], but got ({low}, {high})"]
    if _is_int(initial) and cast(int, initial) < high:
        return [f"initial_bits must be at least the upper end of {name}, but got {initial} < {high}"]
    return []


def _allowed_faults(config: CompressionConfig) -> list[str]:
    allowed: object = config.allowed_bits
    if allowed is None:
        return []
    whole = isinstance(allowed, tuple) and all(_is_int(bits) for bits in allowed)
    if (
        not whole
        or not allowed
        or not all(LOWEST_BITS <= bits <= HIGHEST_BITS for bits in cast(tuple[int, ...], allowed))
    ):
        return [f"allowed_bits must be whole numbers in [{LOWEST_BITS}, {HIGHEST_BITS}] or null, but got {allowed!r}"]
    object.__setattr__(config, "allowed_bits", tuple(sorted(set(cast(tuple[int, ...], allowed)))))
    return [
        f"{name}={bounds} must hold one of allowed_bits={config.allowed_bits}; widen one of them"
        for name in ("weight_bits", "activation_bits")
        if config.budget is None
        and not _range_faults(name, bounds := getattr(config, name), HIGHEST_BITS)
        and not config.widths(bounds)
    ]


def _budget_faults(config: CompressionConfig) -> list[str]:
    budget: object = config.budget
    if budget is None:
        return []
    if not isinstance(budget, Budget):
        return [f"budget must be geta.Bops(...), geta.Bytes(...), geta.Latency(...) or None, but got {budget!r}"]
    stated = [
        f"{f.name}={getattr(config, f.name)!r}"
        for f in fields(config)
        if f.name in FOUND and getattr(config, f.name) != f.default
    ]
    if stated:
        return [
            *budget.faults(),
            f"state either a budget or {', '.join(FOUND)}, but got both: {budget} and {', '.join(stated)}",
        ]
    return budget.faults()


def _count_faults(config: CompressionConfig) -> list[str]:
    faults = []
    for name in ("divisible_by", "min_kept"):
        value = getattr(config, name)
        if not _is_int(value) or value < 1:
            faults.append(f"{name} must be a whole number >= 1, but got {value!r}")
    bits = config.initial_bits
    if not _is_int(bits) or not LOWEST_BITS <= bits <= HIGHEST_BITS:
        faults.append(f"initial_bits must be a whole number in [{LOWEST_BITS}, {HIGHEST_BITS}], but got {bits!r}")
    return faults
