"""Which groups become redundant: the lowest scores over the whole network, within what each family can lose.

Everything runs on the device with static shapes: nothing is read back to choose.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Selector:
    """Chooses groups by score under ``min_kept`` and ``divisible_by``.

    The groups of a family, sorted by score, are cut into blocks: the first holds the remainder of the family's size by
    ``divisible_by`` (if any), the others ``divisible_by`` groups each, so that the number of kept groups is a multiple
    from the first block on. A block scores as its highest member, so a family loses its blocks in order.

    Args:
        family: family number of each group, long, shape [groups].
        sparsity: share of the groups that is asked for.
        min_kept: fewest groups that stay in each family.
        divisible_by: kept groups of a family that loses any are a multiple of this.
    """

    def __init__(self, family: Tensor, *, sparsity: float, min_kept: int, divisible_by: int) -> None:
        self.num_groups = family.numel()
        self.asked = int(sparsity * self.num_groups)
        family = family.cpu()
        sizes = torch.bincount(family) if self.num_groups else family.new_zeros(0)
        last: list[int] = []
        size: list[int] = []
        allowed: list[bool] = []
        block_of: list[int] = []
        position = 0
        for count in sizes.tolist():
            edges = list(range(count, 0, -divisible_by))[::-1]
            for start, end in zip([0, *edges], edges, strict=False):
                block_of += [len(last)] * (end - start)
                last.append(position + end - 1)
                size.append(end - start)
                allowed.append(count - end >= min_kept)
            position += count
        self._family = family
        self._last, self._size = torch.tensor(last, dtype=torch.long), torch.tensor(size, dtype=torch.long)
        self._allowed = torch.tensor(allowed, dtype=torch.bool)
        self._block_of = torch.tensor(block_of, dtype=torch.long)
        self.target = min(self.asked, int(self._size[self._allowed].sum()))
        """Groups that can be reached; blocks larger than one may fall short of it by less than ``divisible_by``."""

    def to(self, device: torch.device) -> None:
        """Move the tables to ``device``."""
        for name in ("_family", "_last", "_size", "_allowed", "_block_of"):
            setattr(self, name, getattr(self, name).to(device))

    def share(self, period: int, periods: int) -> int:
        """Return how many groups are pruned at the end of period number ``period``: floor(K/P) each, the rest last."""
        return self.target if period == periods - 1 else self.target // periods * (period + 1)

    def choose(self, score: Tensor, pruned: Tensor, share: int) -> Tensor:
        """Return a bool tensor [groups]: the groups to prune now, so that ``share`` are pruned with those before.

        Ties keep the order of the groups. Groups that are pruned already are never chosen.

        Args:
            score: score of each group, shape [groups].
            pruned: groups that were pruned before, bool, shape [groups].
            share: number of pruned groups, old and new, to reach.
        """
        # By family, in a family by score, what was pruned before first: then block borders never move.
        order = score.masked_fill(pruned, float("-inf")).argsort(stable=True)
        order = order[self._family[order].argsort(stable=True)]
        open_blocks = self._allowed & ~pruned[order][self._last]
        key = score[order][self._last].masked_fill(~open_blocks, float("inf"))
        ranking = key.argsort(stable=True)
        ranked_open = open_blocks[ranking]
        taken = (self._size[ranking] * ranked_open).cumsum(0) <= share - pruned.sum()
        chosen_blocks = torch.zeros_like(open_blocks).scatter(0, ranking, taken & ranked_open)
        return torch.zeros_like(pruned).scatter(0, order, chosen_blocks[self._block_of])
