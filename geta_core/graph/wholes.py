"""Which rows of blocks turn out to be wholes (heads) once a pass over the graph has tied what goes together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from geta_core.graph.labels import Space, is_whole, narrowed, varying

Block = tuple[fx.Node, Tensor, Tensor]


def rows_that_stay(space: Space, parted: Sequence[tuple[fx.Node, Tensor]]) -> set[fx.Node]:
    """Find rows that are one component or must stay: pinning what they share gains nothing there."""
    if not parted:
        return set()
    count, component = space.components()
    stays = torch.zeros(count, dtype=torch.bool)
    for ids, _ in space.pins:
        stays[component[ids]] = True
    parts = ((node, component[rows].unique()) for node, rows in parted)
    return {node for node, rows in parts if len(rows) == 1 or bool(stays[rows].all())}


def whole_rows(component: Tensor, blocks: Iterable[Block]) -> set[fx.Node]:
    """Operations with a block of which each row is one component; a block comes with its first row."""
    return {node for node, block, first in blocks if is_whole(component, block, first)}


def whole_facing(component: Tensor, shared: Iterable[Block]) -> set[tuple[fx.Node, frozenset[int]]]:
    """The same of blocks that face something shared element by element; with the dimensions of what is shared."""
    return {
        (node, varying(face))
        for node, block, face in shared
        if is_whole(component, block, narrowed(block, varying(block) - varying(face)))
    }
