"""What every group saves, for all groups at once: sizes are products, and an index belongs to one group."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from geta_core.accounting import Account
from geta_core.graph.labels import varying
from geta_core.graph.sizes import shape_of

Counts = NDArray[np.int64]


class Costs:
    """Savings of disjoint sets of prunable groups; each set is removed alone.

    Args:
        account: of the prepared model.
    """

    def __init__(self, account: Account) -> None:
        self.account, self.graph = account, account.graph
        self._set_of = torch.zeros(0, dtype=torch.long)

    def saved(self, set_of: Tensor, count: int) -> tuple[Counts, NDArray[np.float64]]:
        """Parameters and MACs that go with each set.

        Args:
            set_of: long [num_prunable], the set (0 .. count - 1) of each prunable group.
            count: number of sets.

        Returns:
            int64 [count] elements of parameters, and float64 [count] MACs per example (definition ``paper``).
        """
        # One more entry at the end: index -1 stands for what is in no set.
        numbers = torch.cat([set_of, torch.tensor([-1])])
        self._set_of = numbers[self.graph.number[self.graph.component]]
        return self._parameters(count), self._macs(count) / self.account.batch

    def _parameters(self, count: int) -> Counts:
        capture, total = self.graph.capture, np.zeros(count, np.int64)
        own = {id(p) for site in self.account.sites for p in site.quantizer.parameters()}
        cuts: dict[str, dict[int, tuple[Counts, Counts]]] = {}
        for slot in self.graph.first.space.slots.values():
            if slot.name in capture.parameters and id(capture.tensors[slot.name]) not in own:
                sets = self._set_of[slot.offset : slot.offset + slot.size].numpy()
                cuts.setdefault(slot.name, {})[slot.dim] = _counted(sets[sets >= 0])
        for name, by_dim in cuts.items():
            _add(total, tuple(capture.tensors[name].shape), by_dim)
        return total

    def _macs(self, count: int) -> Counts:
        total = np.zeros(count, np.int64)
        known: dict[tuple[fx.Node, int], tuple[Counts, Counts]] = {}
        for product in self.account.products:
            if product.operand is None:
                continue
            dims = [(node, dim % len(shape_of(node))) for node, dim in product.sizes]
            for key in dims:
                if key not in known:
                    known[key] = self._gone(*key)
            _add(total, tuple(shape_of(node)[dim] for node, dim in dims), dict(enumerate(known[key] for key in dims)))
        return total

    def _gone(self, node: fx.Node, dim: int) -> tuple[Counts, Counts]:
        """Sets that remove indices of a dimension, and how many: an index goes where one set holds all its ids."""
        size, pairs = shape_of(node)[dim], []
        for layer in self.graph.first.layers(node):
            if dim not in varying(layer):
                continue
            flat = layer.movedim(dim, 0).reshape(size, -1)
            sets = torch.where(flat >= 0, self._set_of[flat.clamp(min=0)], torch.full_like(flat, -1))
            whole = (sets == sets[:, :1]).all(1) & (sets[:, 0] >= 0)
            index = torch.nonzero(whole).flatten()
            pairs.append(sets[index, 0] * size + index)
        if not pairs:
            return _counted(np.zeros(0, np.int64))
        found: Counts = torch.unique(torch.cat(pairs)).numpy()
        return _counted(found // size)


def _counted(sets: Counts) -> tuple[Counts, Counts]:
    """The distinct sets and how often each occurs."""
    values, counts = np.unique(sets, return_counts=True)
    return values.astype(np.int64), counts.astype(np.int64)


def _add(total: Counts, shape: tuple[int, ...], cuts: dict[int, tuple[Counts, Counts]]) -> None:
    """Add the elements of a block of this shape that each set removes, where ``cuts`` names sets and counts per dim."""
    touched = np.unique(np.concatenate([np.zeros(0, np.int64), *(sets for sets, _ in cuts.values())]))
    left = np.ones(len(touched), np.int64)
    for dim, size in enumerate(shape):
        kept = np.full(len(touched), size, np.int64)
        if dim in cuts:
            sets, counts = cuts[dim]
            kept[np.searchsorted(touched, sets)] -= counts
        left *= kept
    total[touched] += int(np.prod(shape, dtype=np.int64)) - left
