"""What QASSO asks of a prepared model that has a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from torch import Tensor

from geta_core.qasso.selection import Selector


class Budgeted(Protocol):
    """A prepared model under a budget."""

    def removed_within_budget(self, choose: Callable[[int], Tensor], low: int) -> int | None:
        """How many groups are to be removed, given the choice for any number; None where the budget says nothing."""

    def within_budget(self, dead: Tensor, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole bit widths of the sites that keep the budget with these groups removed."""


def budget_of(prepared: object) -> Budgeted | None:
    """Return what keeps the budget; None without one."""
    return cast(Budgeted, prepared) if getattr(prepared, "budget", None) is not None else None


def corrected_share(budget: Budgeted, selector: Selector, score: Tensor, pruned: Tensor, share: int) -> int:
    """Return how many groups are to be pruned in all so that the budget is met; ``share`` where it says nothing.

    Args:
        budget: decides, on the host.
        selector: chooses groups.
        score: score of each group, shape [groups].
        pruned: groups that were pruned before, bool, shape [groups].
        share: number that was planned.
    """
    found = budget.removed_within_budget(
        lambda count: pruned | selector.choose(score, pruned, count), int(pruned.sum())
    )
    return share if found is None else found
