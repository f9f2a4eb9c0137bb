"""From learned scores and bit widths to what is removed and whole bits, at a relative BOPs where one is asked for.

Runs once, when a method fixes what it has learned; reads values back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.helpers.soft_cost import SoftCost

TOLERANCE = 0.1
"""A target counts as met within this share of it."""


def removable(score: Tensor, family: Tensor, min_kept: int) -> Tensor:
    """Return the groups in the order in which they may go, lowest score first; the best of each family never go.

    Args:
        score: of each group, [groups].
        family: of each group, long [groups].
        min_kept: how many groups of a family stay at least.
    """
    score, family = score.detach().cpu().double(), family.cpu()
    order = torch.argsort(score, descending=True, stable=True)
    rank = torch.zeros_like(order)
    for number in range(int(family.max()) + 1 if len(family) else 0):
        members = order[family[order] == number]
        rank[members] = torch.arange(len(members))
    rising = torch.argsort(score, stable=True)
    return rising[rank[rising] >= min_kept]


def alive_after(count: int, order: Tensor, groups: int) -> Tensor:
    """Return bool [groups]: what stays when the first ``count`` of ``order`` go."""
    alive = torch.ones(groups, dtype=torch.bool)
    alive[order[:count]] = False
    return alive


def nearest(bits: Tensor, allowed: Sequence[int]) -> Tensor:
    """Return the nearest of the allowed widths, long, shaped like ``bits``; powers of two are compared as logarithms.

    Half-way cases take the higher width.
    """
    widths = torch.tensor(sorted(allowed, reverse=True), device=bits.device)
    doubling = len(allowed) > 1 and all(b == 2 * a for a, b in zip(sorted(allowed), sorted(allowed)[1:], strict=False))
    there = widths.log2() if doubling else widths.to(bits.dtype)
    here = bits.log2() if doubling else bits
    return widths[(here.unsqueeze(-1) - there).abs().argmin(-1)]


class Plan:
    """The search for removed groups and whole bits that meet a target.

    Args:
        cost: of the model.
        order: the groups that may go, in order.
        choices: rising widths that each quantizer may have.
        average: float [sites, entries], from the bits of the entries to those of the sites.
        sizes: entries of each quantizer, side by side.
        groups: number of prunable groups.
    """

    def __init__(
        self,
        cost: SoftCost,
        order: Tensor,
        choices: Sequence[Sequence[int]],
        average: Tensor,
        sizes: Sequence[int],
        groups: int,
    ) -> None:
        self.cost, self.order, self.choices = cost, order, choices
        self.average, self.sizes, self.groups = average, list(sizes), groups

    def relative_bops(self, count: int, bits: Tensor) -> float:
        """Relative BOPs with the first ``count`` groups of the order gone."""
        alive = alive_after(count, self.order, self.groups).to(self.average)
        return float(self.cost.relative_bops(alive, self.average @ bits.to(self.average)))

    def count_at(self, bits: Tensor, target: float) -> int:
        """Fewest removed groups with which the target is not exceeded; all that may go where none suffices."""
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            if self.relative_bops(middle, bits) <= target:
                high = middle
            else:
                low = middle + 1
        return low

    def meet(self, bits: Tensor, learned: Tensor, natural: int, target: float) -> tuple[int, Tensor]:
        """Return removed groups and bits at the target.

        Bits change one quantizer at a time, the one whose width lies farthest from what was learned in the direction
        of the change, while the target would need less than half of what the method wants to remove, or more than half
        of what it wants to keep. Then single changes that come closer to the target are taken, where groups alone miss
        it by more than half of the tolerance.

        Args:
            bits: whole bits, long [entries].
            learned: the bit widths before rounding, [entries].
            natural: number of groups that the method wants to remove.
            target: relative BOPs.
        """
        count, steps = self.count_near(bits, target), sum(map(len, self.choices))
        for _ in range(steps):
            up = count < natural / 2
            if not up and count <= (natural + len(self.order)) / 2:
                break
            moved = self._moves(bits, learned, up)
            if not moved:
                break
            again = self.count_near(moved[0], target)
            if self.miss(again, moved[0], target) > max(self.miss(count, bits, target), TOLERANCE / 2):
                break
            bits, count = moved[0], again
        for _ in range(steps):
            miss = self.miss(count, bits, target)
            if miss <= TOLERANCE / 2:
                break
            up = self.relative_bops(count, bits) < target
            found = [(self.count_near(each, target), each) for each in self._moves(bits, learned, up)]
            best = min(found, key=lambda pair: self.miss(pair[0], pair[1], target), default=(count, bits))
            if self.miss(best[0], best[1], target) >= miss:
                break
            count, bits = best
        return count, bits

    def miss(self, count: int, bits: Tensor, target: float) -> float:
        """How far the BOPs lie from the target, as a share of it."""
        return abs(self.relative_bops(count, bits) / target - 1)

    def count_near(self, bits: Tensor, target: float) -> int:
        """The number of removed groups that comes nearest to the target."""
        count = self.count_at(bits, target)
        return min((c for c in (count - 1, count) if c >= 0), key=lambda c: self.miss(c, bits, target))

    def _moves(self, bits: Tensor, learned: Tensor, up: bool) -> list[Tensor]:
        """Bits with one quantizer moved to the next allowed width, for each that can, the most fitting first."""
        direction = 1 if up else -1
        pieces, wanted = list(torch.split(bits, self.sizes)), torch.split(learned, self.sizes)
        found = []
        for number, (piece, w, each) in enumerate(zip(pieces, wanted, self.choices, strict=True)):
            if not bool((piece == each[-1 if up else 0]).all()):
                steps = torch.tensor(each, device=bits.device)
                place = torch.searchsorted(steps, piece.contiguous()) + direction
                moved = [*pieces[:number], steps[place.clamp(0, len(each) - 1)], *pieces[number + 1 :]]
                found.append((direction * float((w - piece).float().mean()), torch.cat(moved)))
        return [moved for _, moved in sorted(found, key=lambda pair: -pair[0])]
