"""Means over channels: which of them may lose channels, and which reduce a residual stream, whose channels stay.

With removed channels at zero a mean over n of them is S / n, where S is the sum over the n' that are kept; the smaller
model computes S / n'. Times n' / n it is the same, so removal is exact and the graph is told (``slim.rewriting``).

A *residual stream* is a group in which an addition joins weights that nothing before it had tied to each other. An
addition is an element-wise operation of two activations that is zero only where both are; what multiplies (a gate, the
weight of a norm) ties, too, but joins nothing. The heads of one projection meet only themselves in the addition of a
rotary embedding, a bias is no activation; the sum of a block and its input joins two weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx

from geta_core.graph.capture import where
from geta_core.graph.rules.base import lookup

if TYPE_CHECKING:
    from geta_core.graph.dependency import Dependencies

Meeting = tuple[fx.Node, int, int, int]
"""An operation, the numbers of two of its operands, and the number of the tie that it makes of them."""


@dataclass(frozen=True)
class Mean:
    """One label layer of a value, before a mean over the dimensions along which the label varies.

    ``position`` is the number of pins that were known when it was met: where it becomes one, it takes that place.
    """

    node: fx.Node
    layer: Tensor
    reason: str
    position: int


def settle(first: Dependencies) -> None:
    """Pin the residual streams that a mean reduces, or flag them inexact where the user opted in."""
    if first.means:
        flags = _streams(first)
        first.means = _without(first, [flags[mean.layer] for mean in first.means])


def retreat(first: Dependencies, component: Tensor, live: Sequence[tuple[Mean, Tensor]]) -> None:
    """Do the same to components that are not proved to be zero before a mean."""
    empty = torch.zeros(0, dtype=torch.long)
    found = [torch.cat([empty, *(parts for mean, parts in live if mean is each)]) for each in first.means]
    flags = [torch.isin(component[each.layer], parts) for each, parts in zip(first.means, found, strict=True)]
    first.means = _without(first, flags)


def _without(first: Dependencies, flags: Sequence[Tensor]) -> list[Mean]:
    """The means, without the labels that are flagged (those of -1 are none)."""
    kept, added = [], 0
    for mean, flag in zip(first.means, flags, strict=True):
        ids, position = mean.layer[flag & (mean.layer >= 0)], mean.position + added
        if ids.numel() and first.prune_normalized:
            first.inexact.append(ids)
        elif ids.numel():
            first.space.pins.insert(position, (ids, f"{mean.reason}, at {where(mean.node)}"))
            added += 1
        rest = torch.where(flag, torch.full_like(mean.layer, -1), mean.layer)
        if bool((rest >= 0).any()):
            kept.append(replace(mean, layer=rest, position=position))
    return kept


def _streams(first: Dependencies) -> Tensor:
    """Bool [ids]: what belongs to a residual stream."""
    space = first.space
    starts = np.sort([*(slot.offset for slot in space.slots.values()), *(start for start, _ in space.made)])
    owner = np.searchsorted(starts, np.arange(space.size), side="right") - 1
    meetings = {tie: (node, i, j) for node, i, j, tie in first.meetings}
    weights = _Union(len(starts))
    joined = [np.zeros(0, np.int64)]
    for number, (left, right) in enumerate(space.ties):
        a, b = owner[left.numpy()], owner[right.numpy()]
        pairs = np.unique(np.stack([a, b]), axis=1).T if len(a) else np.zeros((0, 2), np.int64)
        new = [pair for pair in pairs.tolist() if weights.join(*pair)]
        if new and number in meetings and _adds(*meetings[number]):
            joined.append(left.numpy())
    count, component = space.components()
    flags = torch.zeros(count, dtype=torch.bool)
    flags[component[torch.from_numpy(np.concatenate(joined))]] = True
    return flags[component]


class _Union:
    """Disjoint sets of numbers below ``count``."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, item: int) -> int:
        """The number that stands for the set of ``item``."""
        while self.parent[item] != item:
            self.parent[item] = item = self.parent[self.parent[item]]
        return item

    def join(self, left: int, right: int) -> bool:
        """Make one set of two; False if they were one."""
        left, right = self.find(left), self.find(right)
        self.parent[left] = right
        return left != right


def _adds(node: fx.Node, left: int, right: int) -> bool:
    """Whether an element-wise operation needs both operands at zero to be zero."""
    from geta_core.graph.rules.pointwise import ELEMENTWISE
    from geta_core.graph.rules.probing import zeroing_subsets

    rule = lookup(node.target)
    if rule is None or rule.labels is not ELEMENTWISE:
        return False
    return any({left, right} <= set(subset) for subset in zeroing_subsets(node))
