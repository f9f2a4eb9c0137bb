"""What QASSO asks of a prepared model that has a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor


class Budgeted(Protocol):
    """A prepared model under a budget."""

    def removed_within_budget(self, choose: Callable[[int], Tensor], low: int) -> int | None:
        """How many groups are to be removed, given the choice for any number; None where the budget says nothing."""

    def within_budget(self, dead: Tensor, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole bit widths of the sites that keep the budget with these groups removed."""


def budget_of(prepared: object) -> Budgeted | None:
    """Return what keeps the budget; None without one."""
    return cast(Budgeted, prepared) if getattr(prepared, "budget", None) is not None else None
