"""Label tensors: which index of which parameter dimension does each element of an activation stand for?

Every index of every parameter dimension has an integer id. A value carries *layers*: long tensors of the value's
rank whose
sizes are 1 where the label does not vary; -1 marks an index that belongs to nothing removable. An activation made by a
convolution has one layer (its output channels); a weight has one layer per dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Layers = tuple[Tensor, ...]
"""The label layers of one value."""


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter or buffer; its indices have the ids offset .. offset + size - 1."""

    name: str
    dim: int
    offset: int
    size: int


@dataclass
class Space:
    """All ids, the ties between them, and the ids that must stay."""

    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    made: list[tuple[int, int]] = field(default_factory=list)
    """Id ranges [start, end) of dimensions that the code makes itself (``torch.zeros``): no tensor holds them."""
    size: int = 0
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    _source: Tensor = field(default_factory=lambda: torch.zeros(1024, dtype=torch.int8))
    """Per id: 0 a parameter, 1 a buffer or constant, 2 a value that the code makes."""

    def mark(self, start: int, end: int, source: int) -> None:
        """Say where the ids start .. end - 1 come from: 1 a buffer or constant, 2 a value that the code makes."""
        while end > len(self._source):
            self._source = torch.cat([self._source, torch.zeros_like(self._source)])
        self._source[start:end] = source

    def slot(self, name: str, dim: int, size: int) -> Slot:
        """The slot of a parameter dimension, made on first use."""
        key = (name, dim)
        if key not in self.slots:
            self.slots[key] = Slot(name, dim, self.size, size)
            self.size += size
        return self.slots[key]

    def layers_of(self, name: str, shape: Sequence[int]) -> Layers:
        """One layer per dimension of more than one index."""
        layers = []
        for dim, size in enumerate(shape):
            if size > 1:
                slot = self.slot(name, dim, size)
                view = [1] * len(shape)
                view[dim] = size
                layers.append(torch.arange(slot.offset, slot.offset + size).view(view))
        return tuple(layers)

    def made_layers(self, shape: Sequence[int], dims: Iterable[int]) -> Layers:
        """One layer of new ids per dimension of ``dims`` with more than one index, for a value that no tensor holds."""
        layers = []
        for dim in dims:
            if shape[dim] > 1:
                view = [1] * len(shape)
                view[dim] = shape[dim]
                self.made.append((self.size, self.size + shape[dim]))
                self.mark(*self.made[-1], 2)
                layers.append(torch.arange(self.size, self.size + shape[dim]).view(view))
                self.size += shape[dim]
        return tuple(layers)

    def is_made(self, layer: Tensor) -> bool:
        """Whether every label of a layer belongs to a value that the code makes."""
        return bool(self.made) and self._least_source(layer) == 2

    def is_constant(self, layer: Tensor) -> bool:
        """Whether no label of a layer belongs to a parameter."""
        return self._least_source(layer) > 0

    def _least_source(self, layer: Tensor) -> int:
        ids = layer[layer >= 0]
        if not ids.numel():
            return 0
        if int(ids.max()) >= len(self._source):
            self.mark(self.size, self.size + 1, 0)
        return int(self._source[ids].min())

    def tie(self, left: Tensor, right: Tensor, reason: str) -> None:
        """Elements that face each other are removed together; one that faces nothing removable must stay."""
        left, right = torch.broadcast_tensors(left, right)
        both = (left >= 0) & (right >= 0)
        if bool(both.all()):
            self.ties.append((left.reshape(-1), right.reshape(-1)))
            return
        self.ties.append((left[both], right[both]))
        for a, b in ((left, right), (right, left)):
            alone = a[(a >= 0) & (b < 0)]
            if alone.numel():
                self.pins.append((alone, reason))

    def tie_across(self, layer: Tensor, dims: Iterable[int], reason: str) -> Tensor:
        """Make the label constant along ``dims`` by tying every index to the first; returns the narrowed layer."""
        first = layer
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        if first.shape != layer.shape:
            self.tie(layer, first, reason)
        return first

    def pin(self, layer: Tensor, reason: str) -> None:
        """These ids are never removed."""
        ids = layer[layer >= 0]
        if ids.numel():
            self.pins.append((ids, reason))

    def components(self) -> tuple[int, Tensor]:
        """Number of components, and the component of each id."""
        if not self.size:
            return 0, torch.zeros(0, dtype=torch.long)
        left = np.concatenate([np.zeros(0, np.int64), *(a.numpy() for a, _ in self.ties)])
        right = np.concatenate([np.zeros(0, np.int64), *(b.numpy() for _, b in self.ties)])
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(self.size, self.size))
        count, component = connected_components(graph, directed=False)
        return int(count), torch.from_numpy(component.astype(np.int64))


def collapse(layer: Tensor) -> Tensor:
    """Narrow every dimension along which the label does not vary to size 1."""
    for dim in range(layer.dim()):
        if layer.shape[dim] > 1:
            first = layer.narrow(dim, 0, 1)
            if layer.stride(dim) == 0 or bool((layer == first).all()):
                layer = first
    return layer


def varying(layer: Tensor) -> frozenset[int]:
    """The dimensions along which the label varies."""
    return frozenset(dim for dim, size in enumerate(layer.shape) if size > 1)


def tidy(layers: Iterable[Tensor]) -> Layers:
    """Collapse layers, and drop those without any label and exact repeats."""
    kept: list[Tensor] = []
    for layer in map(collapse, layers):
        if bool((layer != -1).any()) and not any(layer.shape == k.shape and bool((layer == k).all()) for k in kept):
            kept.append(layer)
    return tuple(kept)


@dataclass(frozen=True)
class Operand:
    """A value as one factor of an einsum-like operation: ``letters[i]`` names its dimension i."""

    layers: Layers
    letters: tuple[int, ...]
    shape: tuple[int, ...]
    data: bool = True
    """Whether the value depends on a user input; otherwise it is made of parameters and constants."""

    def size(self, letter: int) -> int:
        """Size along a letter, 1 where the operand does not have it."""
        return self.shape[self.letters.index(letter)] if letter in self.letters else 1


def to_letters(layer: Tensor, letters: Sequence[int], count: int) -> Tensor:
    """Bring a layer with one dimension per letter into the space of all ``count`` letters."""
    order = sorted(range(len(letters)), key=lambda i: letters[i])
    shape = [1] * count
    for i in order:
        shape[letters[i]] = layer.shape[i]
    return layer.permute(order).reshape(shape)


def from_letters(layer: Tensor, letters: Sequence[int]) -> Tensor:
    """Bring a layer from the space of all letters back to one dimension per letter of ``letters``."""
    rest = [i for i in range(layer.dim()) if i not in letters]
    return layer.permute([*letters, *rest]).reshape([layer.shape[i] for i in letters])


def aligned(shapes: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Letters of operands that broadcast against each other from the right, and of their result."""
    rank = max((len(shape) for shape in shapes), default=0)
    return [tuple(range(rank - len(shape), rank)) for shape in shapes], tuple(range(rank))


def narrowed(layer: Tensor, dims: frozenset[int]) -> Tensor:
    """The first index of a layer along some dimensions."""
    for dim in dims:
        layer = layer.narrow(dim, 0, 1)
    return layer


def is_whole(component: Tensor, layer: Tensor, narrow: Tensor) -> bool:
    """Whether each row of a block is one component, and the rows are several; ``narrow`` is one row."""
    if bool((layer < 0).any()):
        return False
    parts, row = component[layer], component[narrow]
    inner = [dim for dim in range(layer.dim()) if row.shape[dim] > 1]
    rows = parts
    for dim in inner:
        rows = rows.narrow(dim, 0, 1)
    return bool((parts == rows).all()) and not bool((rows == rows.flatten()[0]).all())


def are_rows(rows: Tensor, shared: Tensor) -> bool:
    """Whether two labels of one dimension are those of a flattened block: of its rows, and of what all rows share.

    The rows change slowest; no id may be in both.
    """
    if rows.shape != shared.shape or len(varying(rows)) != 1:
        return False
    left, right = rows.flatten(), shared.flatten()
    if bool((left < 0).any()) or bool((right < 0).any()) or bool(torch.isin(left, right).any()):
        return False
    width = int((left == left[0]).sum())
    if width in (1, len(left)) or len(left) % width:
        return False
    blocks, inner = left.view(-1, width), right.view(-1, width)
    several = bool((inner[0] != inner[0, 0]).any())
    return several and bool((blocks == blocks[:, :1]).all()) and bool((inner == inner[:1]).all())


def facing(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of ids at the same place, where both have one."""
    left, right = torch.broadcast_tensors(left, right)
    both = (left >= 0) & (right >= 0)
    return left[both], right[both]


def outermost(spread: Sequence[Sequence[Tensor]], contracted: frozenset[int], space: Space) -> list[Tensor]:
    """Layers that reach the result: of tied ones the one that varies most stands for all, a tensor's before others."""
    candidates = [(i, layer) for i, layers in enumerate(spread) for layer in layers if not varying(layer) & contracted]
    kept: list[tuple[int, Tensor]] = []
    for source, layer in sorted(candidates, key=lambda a: (-len(varying(a[1])), space.is_made(a[1]))):
        for i, (owner, other) in enumerate(kept):
            # Two labels of one operand need not be tied: both go on.
            if owner != source and varying(layer) and varying(layer) <= varying(other):
                kept[i] = owner, torch.where(other >= 0, other, layer)
                break
        else:
            kept.append((source, layer))
    return [layer for _, layer in kept]
