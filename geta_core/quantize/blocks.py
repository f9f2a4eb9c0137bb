"""The two formulas on the CPU, eagerly, in blocks that stay in the cache.

A large tensor passes through memory once instead of once per operation, and no temporary has its size. Every element
sees the operations of :mod:`geta_core.quantize.math` in the same order, so that forward values are the same bits; only
sums are added up in another order. Comparisons go into float buffers: into booleans they are several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geta_core.quantize import math

BLOCK = 1 << 17
"""Elements per block; a few float32 buffers of this size stay in the caches of one core."""
LEAST = 1 << 16
"""Elements from which on blocks are worth their bookkeeping; below, see :mod:`geta_core.quantize.small`."""


class _Grid(NamedTuple):
    d: Tensor
    q_m: Tensor
    t: Tensor | None
    signed: bool


def forward(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor | None:
    """Return x^Q, or None where the memory of x has gaps or overlaps."""
    order = memory_order(x)
    if order is None:
        return None
    out = torch.empty_like(x)
    source, target = _ordered(order, d, x, out)
    if _fits(x, d):
        _forward_block(source, target, _buffers(2, source, source.numel()), _grid(source, d, q_m, t, signed))
        return out
    rows = _rows(source)
    buffers = _buffers(2, source, rows)
    grids = _grids(order, source, d, q_m, t, signed)
    for a, b, grid in zip(source.split(rows), target.split(rows), grids, strict=True):
        _forward_block(a, b, buffers, grid)
    return out


def backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
    """Return the gradients of x, d, q_m and t, or None where the memory of x has gaps or overlaps."""
    order = memory_order(x)
    if order is None:
        return None
    g = aligned(g, x)
    g_x = torch.empty_like(g)
    source, gradient, target = _ordered(order, d, x, g, g_x)
    if _fits(x, d):
        buffers, grid = _buffers(3, source, source.numel()), _grid(source, d, q_m, t, signed)
        g_d, g_q, *rest = _backward_block(gradient, source, target, buffers, grid)
    else:
        rows = _rows(source)
        buffers = _buffers(3, source, rows)
        grids = _grids(order, source, d, q_m, t, signed)
        pieces = zip(*(part.split(rows) for part in (gradient, source, target)), grids, strict=True)
        sums = [_backward_block(a, b, c, buffers, grid) for a, b, c, grid in pieces]
        g_d, g_q, *rest = (_joined(values, order, d) for values in zip(*sums, strict=True))
    if t is None:
        return g_x, g_d.to(d.dtype), g_q.to(q_m.dtype), None
    exponent, top = (value.detach().to(g_q.dtype) for value in (t, q_m))
    g_q = g_q * (exponent * math.power(top, exponent - 1))
    return g_x, g_d.to(d.dtype), g_q.to(q_m.dtype), (rest[0] * math.LN_2).to(t.dtype)


def _fits(x: Tensor, d: Tensor) -> bool:
    """Tell whether the tensor is one block, which most weights are: then nothing has to be split and joined."""
    return d.dim() == 0 and x.numel() <= BLOCK


def memory_order(x: Tensor) -> list[int] | None:
    """Return the dimensions from the slowest to the fastest in memory, or None where x has gaps or overlaps."""
    if x.is_contiguous():
        return list(range(x.dim()))
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return order if x.permute(order).is_contiguous() else None


def aligned(g: Tensor, x: Tensor) -> Tensor:
    """Return g with the memory layout of the dense x."""
    return g if g.stride() == x.stride() else torch.empty_like(x, dtype=g.dtype).copy_(g)


def flat(x: Tensor, order: list[int]) -> Tensor:
    """Return a detached one-dimensional view of the dense x in memory order."""
    return x.detach().view(-1) if x.is_contiguous() else x.detach().permute(order).view(-1)


def _ordered(order: list[int], d: Tensor, *values: Tensor) -> list[Tensor]:
    """Return the values in memory order: flat where one triple serves the whole tensor."""
    return [flat(value, order) if d.dim() == 0 else value.detach().permute(order) for value in values]


def _rows(x: Tensor) -> int:
    return max(1, BLOCK * x.shape[0] // x.numel())


def _buffers(count: int, x: Tensor, rows: int) -> Tensor:
    shape = (count, min(rows, x.shape[0]), *x.shape[1:])
    return torch.empty(shape, dtype=math.working_dtype(x.dtype))


def _grid(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> _Grid:
    """Return the grid for a whole tensor."""
    dtype = math.working_dtype(x.dtype)
    d, q_m = d.detach().to(dtype), q_m.detach().to(dtype)
    return _Grid(d, q_m, None if t is None else t.detach().to(dtype), signed)


def _grids(order: list[int], x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Sequence[_Grid]:
    """Return the grid of each block: the rows that belong to it, or the one that serves all."""
    rows = _rows(x)
    count = -(-x.shape[0] // rows)

    def split(value: Tensor) -> Sequence[Tensor]:
        value = value.detach().to(math.working_dtype(x.dtype))
        value = value.permute(order) if value.dim() else value
        return value.split(rows) if value.dim() and value.shape[0] > 1 else [value] * count

    exponents: Sequence[Tensor | None] = [None] * count if t is None else split(t)
    return [_Grid(*values, signed) for values in zip(split(d), split(q_m), exponents, strict=True)]


def _joined(values: Sequence[Tensor], order: list[int], like: Tensor) -> Tensor:
    """Put the blocks' sums together, in the shape of the parameter."""
    if like.dim() == 0:
        return torch.stack(list(values)).sum()
    ordered = like.permute(order)
    joined = torch.cat(list(values)) if ordered.shape[0] > 1 else torch.stack(list(values)).sum(0)
    return joined.permute(sorted(range(len(order)), key=order.__getitem__))


def _clamped(x: Tensor, grid: _Grid, out: Tensor) -> Tensor:
    if grid.signed:
        torch.minimum(x, grid.q_m, out=out)
        return torch.maximum(out, -grid.q_m, out=out)
    torch.clamp(x, min=0.0, out=out)
    return torch.minimum(out, grid.q_m, out=out)


def _magnitude(x: Tensor, grid: _Grid, out: Tensor) -> Tensor:
    floor = math.power_floor(x.dtype)
    if grid.signed:
        torch.abs(x, out=out)
        out.clamp_(min=floor)
    else:
        torch.clamp(x, min=floor, out=out)
    return torch.minimum(out, grid.q_m, out=out)


def _sign(x: Tensor, grid: _Grid, out: Tensor) -> Tensor:
    return torch.sign(x, out=out) if grid.signed else torch.gt(x, 0.0, out=out)


def _forward_block(x: Tensor, out: Tensor, buffers: Tensor, grid: _Grid) -> None:
    a, b = buffers[:, : x.shape[0]]
    wide = x.to(a.dtype)
    result = out if out.dtype == a.dtype else b
    if grid.t is None:
        _clamped(wide, grid, out=result).div_(grid.d).round_().mul_(grid.d)
    else:
        _magnitude(wide, grid, out=result).log2_().mul_(grid.t).exp2_().div_(grid.d).round_()
        result.mul_(_sign(wide, grid, out=a)).mul_(grid.d)
    if result is not out:
        out.copy_(result)


def _backward_block(g: Tensor, x: Tensor, g_x: Tensor, buffers: Tensor, grid: _Grid) -> tuple[Tensor, ...]:
    """Write g_x of one block; return the sums that belong to d, q_m and, with t, to t."""
    a, b, c = buffers[:, : x.shape[0]]
    g, x = g.to(a.dtype), x.to(a.dtype)
    result = g_x if g_x.dtype == a.dtype else torch.empty_like(a)
    clamped = _clamped(x, grid, out=a)
    torch.eq(clamped, x, out=result)
    result.mul_(g)
    if result is not g_x:
        g_x.copy_(result)
    cut = torch.sub(g, result, out=b) if grid.signed else torch.gt(x, grid.q_m, out=b).mul_(g)
    g_q = _sum(cut, torch.sign(clamped, out=c), grid)
    if grid.t is None:
        scaled = clamped.div_(grid.d)
        return _sum(torch.round(scaled, out=b).sub_(scaled), g, grid), g_q
    signed_g = _sign(x, grid, out=c).mul_(g)
    log = _magnitude(x, grid, out=a).log2_()
    clip = torch.mul(log, grid.t, out=b).exp2_()
    g_t = _sum(log.mul_(clip), signed_g, grid)
    scaled = clip.div_(grid.d)
    return _sum(torch.round(scaled, out=a).sub_(scaled), signed_g, grid), g_q, g_t


def _sum(values: Tensor, weights: Tensor, grid: _Grid) -> Tensor:
    """Return the sum of the products in the shape of d; ``values`` may be overwritten."""
    if grid.d.dim() == 0:
        return torch.dot(values, weights)
    total = values.mul_(weights).sum_to_size(grid.d.shape)
    # Where there is nothing to sum the result is the buffer itself, which the next block overwrites.
    return total.clone() if total.shape == values.shape else total
