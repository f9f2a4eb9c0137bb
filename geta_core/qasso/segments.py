"""The prunable parameters as rows: which group, which quantizer entry and which layer each row belongs to.

A parameter with a prunable dimension is seen as [outer, rows, inner], a view of its memory. Parameters with equal outer
and inner sizes share a bucket, so that many small ones cost as few launches as one large one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from geta_core.errors import ConfigError
from geta_core.qasso.quant_update import Span

CPU_BLOCK, DEVICE_BLOCK = 2**16, 2**24
"""Elements that are worked on at a time: what fits into a core's cache; on accelerators only a bound on memory."""


class Slot(Protocol):
    """One prunable dimension of a parameter: ``group[index]`` is a group number, or -1 for never pruned."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter whose rows are zeroed."""

    @property
    def dim(self) -> int:
        """Dimension that the rows are on."""

    @property
    def group(self) -> Tensor:
        """Group number of each index, long, shape [parameter.shape[dim]]."""


@dataclass(eq=False)
class RowMap:
    """One parameter as rows. Host data; the tensors have one entry per row.

    Attributes:
        shape: (outer, rows, inner).
        order: permutation of the dimensions that makes the parameter contiguous.
        groups: group numbers, one tensor for each slot of the parameter, -1 for rows that are never pruned.
        entry: entry of the row's quantizer in the vectors of all quantizers; None for floating-point parameters.
    """

    parameter: nn.Parameter
    shape: tuple[int, int, int]
    order: tuple[int, ...]
    groups: list[Tensor]
    entry: Tensor | None
    learns_exponent: bool

    def view(self) -> Tensor:
        """Return the parameter's memory as [outer, rows, inner]."""
        return self.parameter.detach().permute(self.order).view(self.shape)


def map_rows(slots: Sequence[Slot], spans: dict[int, Span]) -> list[RowMap]:
    """Return one :class:`RowMap` per parameter that has a slot.

    Raises:
        ConfigError: naming every slot that does not fit its parameter.
    """
    by_parameter: dict[int, list[Slot]] = {}
    faults = []
    for slot in slots:
        if slot.group.shape != slot.parameter.shape[slot.dim : slot.dim + 1]:
            faults.append(
                f"slot {slot.name!r} must have one group number per index of dimension {slot.dim} of its parameter, "
                f"but got {tuple(slot.group.shape)} for shape {tuple(slot.parameter.shape)}"
            )
        elif not slot.parameter.detach().permute(_memory_order(slot.parameter)).is_contiguous():
            faults.append(f"parameter of slot {slot.name!r} must be dense in memory; replace it by a contiguous copy")
        by_parameter.setdefault(id(slot.parameter), []).append(slot)
    if faults:
        raise ConfigError(faults)
    return [_map_parameter(own, spans.get(id(own[0].parameter))) for own in by_parameter.values()]


def _memory_order(parameter: Tensor) -> tuple[int, ...]:
    strides = parameter.stride()
    return tuple(sorted(range(parameter.dim()), key=lambda dim: (-strides[dim], dim)))


def _map_parameter(slots: Sequence[Slot], span: Span | None) -> RowMap:
    parameter = slots[0].parameter
    order = _memory_order(parameter)
    dims = {slot.dim for slot in slots}
    per_channel = span is not None and span.count > 1
    if len(dims) > 1 or (per_channel and span is not None and span.channel_axis not in dims):
        return _map_elements(slots, span, order)
    (dim,) = dims
    place = order.index(dim)
    sizes = [parameter.shape[axis] for axis in order]
    outer, rows, inner = _product(sizes[:place]), sizes[place], _product(sizes[place + 1 :])
    entry = None
    if span is not None:
        entry = torch.full((rows,), span.start) + (torch.arange(rows) if per_channel else 0)
    groups = [slot.group.detach().cpu().long() for slot in slots]
    learns = span is not None and span.learns_exponent
    return RowMap(parameter, (outer, rows, inner), order, groups, entry, learns)


def _map_elements(slots: Sequence[Slot], span: Span | None, order: tuple[int, ...]) -> RowMap:
    """Every element is a row of its own: for two prunable dimensions, or channels that are not the prunable one."""
    parameter = slots[0].parameter

    def spread(values: Tensor, dim: int) -> Tensor:
        shape = [-1 if axis == dim else 1 for axis in range(parameter.dim())]
        return values.view(shape).expand(parameter.shape).permute(order).reshape(-1).contiguous()

    entry = None
    if span is not None:
        numbers = span.start + torch.arange(span.count)
        axis = span.channel_axis
        entry = numbers.expand(parameter.numel()).clone() if span.count == 1 or axis is None else spread(numbers, axis)
    groups = [spread(slot.group.detach().cpu().long(), slot.dim) for slot in slots]
    learns = span is not None and span.learns_exponent
    return RowMap(parameter, (1, parameter.numel(), 1), order, groups, entry, learns)


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


@dataclass(eq=False)
class Bucket:
    """Parameters with the same outer and inner size, kind and optimizer group, side by side along the rows.

    Attributes:
        maps: the parameters.
        views: their memory as [outer, rows, inner].
        param_group: number of the optimizer's parameter group.
        entry: quantizer entry of each row, None for floating-point parameters.
        rows: number of rows of all of them.
    """

    maps: list[RowMap]
    param_group: int
    views: list[Tensor] = field(default_factory=list)
    entry: Tensor | None = None
    rows: int = 0

    @property
    def learns_exponent(self) -> bool:
        """Whether the exponent t of the quantizers is learned."""
        return self.maps[0].learns_exponent

    def place(self, device: torch.device) -> None:
        """Take the views of the parameters' present memory and move the tables to ``device``."""
        self.views = [rows.view() for rows in self.maps]
        self.rows = sum(rows.shape[1] for rows in self.maps)
        if self.maps[0].entry is not None:
            self.entry = torch.cat([rows.entry for rows in self.maps if rows.entry is not None]).to(device)

    def gather(self) -> Tensor:
        """Return the values as [outer, rows, inner]: the parameter's own memory if there is one only, else a copy."""
        return self.views[0] if len(self.views) == 1 else torch.cat(self.views, 1)

    def scatter(self, values: Tensor) -> None:
        """Write values from :meth:`gather` back; a single parameter was changed in place."""
        if len(self.views) > 1:
            torch._foreach_copy_(self.views, list(torch.split(values, [rows.shape[1] for rows in self.maps], 1)))

    def blocks(self, limit: int) -> list[tuple[slice, slice]]:
        """Return (outer, rows) slices that cover the bucket in blocks of about ``limit`` elements."""
        outer, _, inner = self.maps[0].shape
        if outer == 1:
            step = max(1, limit // inner)
            return [(slice(None), slice(start, start + step)) for start in range(0, self.rows, step)]
        step = max(1, limit // (self.rows * inner))
        return [(slice(start, start + step), slice(None)) for start in range(0, outer, step)]


def fill_buckets(maps: Sequence[RowMap], param_group: dict[int, int], limit: int) -> list[Bucket]:
    """Return the parameters in buckets of at most ``limit`` elements; a larger parameter has one of its own."""
    open_buckets: dict[object, tuple[Bucket, int]] = {}
    buckets = []
    for rows in maps:
        outer, _, inner = rows.shape
        parameter, number = rows.parameter, param_group[id(rows.parameter)]
        quantized = rows.entry is not None
        key = (outer, inner, parameter.dtype, quantized, rows.learns_exponent, len(rows.groups), number)
        bucket, used = open_buckets.get(key, (None, 0))
        if bucket is None or used + parameter.numel() > limit:
            bucket, used = Bucket([], number), 0
            buckets.append(bucket)
        bucket.maps.append(rows)
        open_buckets[key] = bucket, used + parameter.numel()
    return buckets


class RowSum:
    """Sums rows that share a number; the order of summation is fixed, so that every run and rank gets the same bits.

    Args:
        number: number of each row in [0, count), shape [rows].
        count: how many numbers there are.
        device: where the rows are.
    """

    def __init__(self, number: Tensor, count: int, device: torch.device) -> None:
        self.count = count
        order = number.argsort(stable=True)
        self._order = None if bool((order == torch.arange(number.numel())).all()) else order.to(device)
        self._lengths = torch.bincount(number, minlength=count).to(device)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the sums in float64, shape [kinds, count], of ``values`` of shape [kinds, rows]."""
        values = values.double()
        if self._order is not None:
            values = values.index_select(1, self._order)
        lengths = self._lengths.repeat(values.shape[0])
        # unsafe: the check of the lengths would read them back to the host; they are counted above.
        sums = torch.segment_reduce(values.reshape(-1), "sum", lengths=lengths, unsafe=True)
        return sums.view(-1, self.count)
