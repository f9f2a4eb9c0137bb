"""The passes over the prunable rows: what the rules need from them, forgetting the redundant ones, holding zeros.

Dense 0/1 masks with static shapes stand for the chosen rows, so nothing is read back to the host. The work is done in
blocks that stay in a core's cache; reductions over rows are finished in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geta_core.qasso.joint import Products, without_noise
from geta_core.qasso.quant_update import Span, Vectors
from geta_core.qasso.segments import CPU_BLOCK, DEVICE_BLOCK, Bucket, RowSum, Slot, fill_buckets, map_rows
from geta_core.quantize.math import decompose, working_dtype

Decay = Sequence[float | Tensor | None]
"""1 - lr * weight decay for each of the optimizer's parameter groups; None where no decay is to be taken out."""


class PrunableRows:
    """Rows of all prunable parameters, sorted into groups (what is pruned together) and segments (layers).

    A segment is what has its own gamma and d: a parameter, or the rows of one channel where d is per channel. Segments
    with a quantizer come first.

    Args:
        slots: prunable dimensions of the parameters.
        spans: where the quantizer of each parameter (by id) lies in the vectors.
        num_groups: number of groups.
    """

    def __init__(self, slots: Sequence[Slot], spans: dict[int, Span], num_groups: int) -> None:
        self.num_groups = num_groups
        self.maps = map_rows(slots, spans)
        self.device = self.maps[0].parameter.device if self.maps else torch.device("cpu")
        self._param_group: dict[int, int] = {}
        self._signature: object = None
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []
        self._redundant_rows = torch.zeros(0)
        self._keep: list[Tensor] | None = None
        self.segment_rows = torch.zeros(0)

    def assign(self, param_group: dict[int, int]) -> None:
        """Tell in which of the optimizer's parameter groups each parameter (by id) is."""
        self._param_group, self._signature = param_group, None

    def refresh(self) -> bool:
        """Take notice if a parameter's memory has changed since the last step; return whether one has."""
        signature = [(rows.parameter.data_ptr(), rows.parameter.device) for rows in self.maps]
        if signature == self._signature or not self.maps:
            return False
        self._place()
        self._signature = signature
        return True

    def _place(self) -> None:
        device = self.device = self.maps[0].parameter.device
        self._block = CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK
        self._buckets = fill_buckets(self.maps, self._param_group, self._block)
        for bucket in self._buckets:
            bucket.place(device)
        self._row_counts = [bucket.rows for bucket in self._buckets]
        ordered = [rows for bucket in self._buckets for rows in bucket.maps]
        entries = torch.cat([rows.entry for rows in ordered if rows.entry is not None] or [torch.zeros(0).long()])
        used = torch.unique(entries)
        numbers, plain = [], 0
        for rows in ordered:
            if rows.entry is not None:
                numbers.append(torch.searchsorted(used, rows.entry))
            else:
                numbers.append(torch.full((rows.shape[1],), used.numel() + plain))
                plain += 1
        number = torch.cat(numbers)
        eps = torch.zeros(used.numel() + plain, dtype=torch.float64)
        for rows, own in zip(ordered, numbers, strict=True):
            eps[own] = torch.finfo(rows.parameter.dtype).eps
        self._eps = eps.to(device)
        self.entry_of_segment = used.to(device)
        self._segment_of_row = number.to(device)
        self._sum_segments = RowSum(number, used.numel() + plain, device)
        self._place_groups(device)

    def _place_groups(self, device: torch.device) -> None:
        # Rows that are never pruned belong to an extra group behind the last.
        self._groups: list[list[Tensor]] = []
        repeated, sizes = [], []
        for bucket in self._buckets:
            stacked = [torch.cat(parts) for parts in zip(*(rows.groups for rows in bucket.maps), strict=True)]
            stacked = [torch.where(group < 0, self.num_groups, group) for group in stacked]
            self._groups.append([group.to(device) for group in stacked])
            outer, _, inner = bucket.maps[0].shape
            repeated += stacked
            sizes += [torch.full(group.shape, float(outer * inner)) for group in stacked]
        self._sum_groups = RowSum(torch.cat(repeated), self.num_groups + 1, device)
        self.group_size = self._sum_groups(torch.cat(sizes).to(device).unsqueeze(0))[0, :-1]

    def remember(self) -> None:
        """Copy the rows as they are before the inner optimizer's step."""
        if len(self._before) != len(self._buckets):
            self._before = [
                torch.empty(
                    (bucket.maps[0].shape[0], bucket.rows, bucket.maps[0].shape[2]),
                    dtype=working_dtype(bucket.views[0].dtype),
                    device=self.device,
                )
                for bucket in self._buckets
            ]
        for bucket, before in zip(self._buckets, self._before, strict=True):
            torch._foreach_copy_(list(torch.split(before, [rows.shape[1] for rows in bucket.maps], 1)), bucket.views)

    def gather(self) -> None:
        """Take the rows as the inner optimizer's step has left them."""
        self._after = [bucket.gather() for bucket in self._buckets]

    def release(self) -> None:
        """Give back the memory that the joint stage needs."""
        self._before, self._after = [], []

    def mark_redundant(self, redundant: Tensor) -> None:
        """Set which groups are being forgotten, bool, shape [groups]."""
        self._redundant_rows = torch.cat([flags.double() for flags in self._row_flags(redundant)])
        self.segment_rows = self._sum_segments(self._redundant_rows.unsqueeze(0))[0]

    def mark_pruned(self, pruned: Tensor | None) -> None:
        """Set which groups are held at zero, bool, shape [groups]; None where none can be yet."""
        self._keep = (
            None
            if pruned is None
            else [
                (~flags).to(bucket.views[0].dtype).unsqueeze(1)
                for flags, bucket in zip(self._row_flags(pruned), self._buckets, strict=True)
            ]
        )

    def _row_flags(self, groups: Tensor) -> list[Tensor]:
        extended = torch.cat([groups, groups.new_zeros(1)])
        flags = []
        for numbers in self._groups:
            flag = extended.index_select(0, numbers[0])
            for more in numbers[1:]:
                flag = flag | extended.index_select(0, more)
            flags.append(flag)
        return flags

    def group_sums(self, decay: Decay) -> Tensor:
        """Return <x, x>, <x, G>, <G, G> over the rows of each group, float64, shape [3, groups]."""
        parts = []
        for bucket, before, after, numbers in zip(self._buckets, self._before, self._after, self._groups, strict=True):
            sums = []
            for block in bucket.blocks(self._block):
                x, moved = before[block], _movement(before[block], after[block], decay[bucket.param_group])
                sums.append(torch.stack([_row_dot(x, x), _row_dot(x, moved), _row_dot(moved, moved)]))
            parts += [_join(sums, bucket)] * len(numbers)
        return self._sum_groups(torch.cat(parts, 1))[:, :-1]

    def products(self, vectors: Vectors | None, decay: Decay) -> Products:
        """Return the inner products over the redundant rows of each segment, float64, shape [segments].

        Afterwards the remembered rows hold their clip part c, which is all that :meth:`forget` needs.

        Args:
            vectors: d, q_m and t of the forward pass, before the step.
            decay: weight decay that is no part of the direction.
        """
        parts = []
        for bucket, before, after in zip(self._buckets, self._before, self._after, strict=True):
            columns = _columns(vectors, bucket, before.dtype)
            sums = []
            for block in bucket.blocks(self._block):
                c = before[block]
                moved = _movement(c, after[block], decay[bucket.param_group])
                if columns is None:
                    residual = torch.zeros_like(moved[0, :, 0])
                else:
                    d, q_m, t = (None if column is None else column[block[1]] for column in columns)
                    assert d is not None and q_m is not None
                    clip, r = decompose(c, d, q_m, t)
                    c = c.copy_(clip)
                    residual = _row_dot(r, moved)
                sums.append(torch.stack([_row_dot(moved, moved), _row_dot(c, c), _row_dot(c, moved), residual]))
            parts.append(_join(sums, bucket))
        # A product, not a selection: shapes stay static. Rows that are not redundant drop out.
        segments = self._sum_segments(torch.cat(parts, 1).double() * self._redundant_rows)
        return without_noise(Products(*segments.unbind()), self._eps)

    def forget(self, gamma: Tensor, vectors: Vectors | None) -> None:
        """Set x <- x - lr g - gamma x^Q in the redundant rows, and 0 in the pruned ones.

        Args:
            gamma: forget rate of each segment, float64.
            vectors: d, q_m and t of the forward pass, before the step.
        """
        rates = torch.split(gamma.index_select(0, self._segment_of_row) * self._redundant_rows, self._row_counts)
        for number, (bucket, c, after) in enumerate(zip(self._buckets, self._before, self._after, strict=True)):
            columns = _columns(vectors, bucket, c.dtype)
            rate = rates[number].to(c.dtype).unsqueeze(1)
            for block in bucket.blocks(self._block):
                value = c[block]
                if columns is not None:
                    d = columns[0][block[1]]
                    value = torch.round(value / d).mul_(d)
                after[block].addcmul_(value, rate[block[1]], value=-1)
                if self._keep is not None:
                    after[block].mul_(self._keep[number][block[1]])
            bucket.scatter(after)
        self._after = []

    def hold(self) -> None:
        """Set the pruned rows to exactly 0, whatever momentum or weight decay has done to them."""
        if self._keep is None:
            return
        for bucket, keep in zip(self._buckets, self._keep, strict=True):
            bucket.scatter(bucket.gather().mul_(keep))


def _movement(before: Tensor, after: Tensor, decay: float | Tensor | None) -> Tensor:
    """Return lr * g, the inner optimizer's movement against its direction, without weight decay."""
    start = before if decay is None else before * decay
    return start - after


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((0, 2))


def _join(parts: list[Tensor], bucket: Bucket) -> Tensor:
    """Put the sums of a bucket's blocks together, shape [kinds, rows]."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, 1) if bucket.maps[0].shape[0] == 1 else torch.stack(parts).sum(0)


def _columns(
    vectors: Vectors | None, bucket: Bucket, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return d, q_m and t of each row as columns [rows, 1]; None for floating-point parameters."""
    if vectors is None or bucket.entry is None:
        return None
    entry = bucket.entry
    d, q_m = (vector.index_select(0, entry).to(dtype).unsqueeze(1) for vector in (vectors.d, vectors.q_m))
    if vectors.t is None or not bucket.learns_exponent:
        return d, q_m, None
    return d, q_m, vectors.t.index_select(0, entry).to(dtype).unsqueeze(1)


def decay_factor(group: dict[str, Any], sgd: bool) -> float | Tensor | None:
    """Return 1 - lr * weight decay of a parameter group, None where the decay cannot be taken out of the movement."""
    decay = group.get("weight_decay", 0)
    if not decay:
        return None
    share = 1.0
    if sgd and group["momentum"]:
        share = 1 + group["momentum"] if group["nesterov"] else 1 - group["dampening"]
    elif not sgd and not group.get("decoupled_weight_decay", False):
        return None
    factor: float | Tensor = 1 - group["lr"] * decay * share
    return factor
