"""The optimal brain surgeon, row by row: ExactOBS and OBQ of Frantar et al. (arXiv:2208.11580).

H = E[x x^T] is (half) the Hessian of a row's squared output error, and H^-1 = Z. Setting weight p of a row to v costs

    (w_p - v)^2 / Z_pp,  with the update  w <- w - (w_p - v) / Z_pp Z_:p        (OBS; OBQ with v = quant(w_p))

of the weights that are still free, after which Z <- Z - Z_:p Z_p: / Z_pp takes p out of the problem (Lemma 1). For a
set P of weights that go to zero together the cost is w_P^T (Z_PP)^-1 w_P, the update w <- w - Z_:P (Z_PP)^-1 w_P, and
Z loses Z_:P (Z_PP)^-1 Z_P: (the group form of OBS).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 1 << 22
"""Elements of the rows' own inverse Hessians that are held at a time."""


def downdate_(inverse: Tensor, p: Tensor) -> None:
    """Take one weight of each row out of its inverse Hessian, in place: row and column p become zero (Lemma 1).

    Args:
        inverse: Z of every row, [rows, columns, columns].
        p: index of the weight, long [rows].
    """
    each = torch.arange(len(p), device=p.device)
    column = inverse[each, :, p]
    scaled = column / column[each, p].unsqueeze(1)
    torch.baddbmm(inverse, column.unsqueeze(2), scaled.unsqueeze(1), alpha=-1, out=inverse)
    # What is zero in exact arithmetic must be zero, or it would come back as a divisor.
    inverse[each, :, p] = 0
    inverse[each, p, :] = 0


def removal_costs(weight: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order in which ExactOBS removes the weights of each row, and what each removal costs.

    Args:
        weight: [rows, columns].
        inverse: Z, [columns, columns].

    Returns:
        Indices, long [rows, columns], and costs, shaped alike: of each removal alone, after those before.
    """
    orders, costs = [], []
    for w in (rows.clone() for rows in _blocks(weight)):
        z = inverse.expand(len(w), -1, -1).clone()
        free = torch.ones_like(w, dtype=torch.bool)
        order, cost = [], []
        for _ in range(w.shape[1]):
            p, least = _cheapest(w.square(), z, free)
            _move_(w, z, p, torch.zeros_like(least))
            free.scatter_(1, p.unsqueeze(1), False)
            order.append(p)
            cost.append(least)
        orders.append(torch.stack(order, 1))
        costs.append(torch.stack(cost, 1))
    return torch.cat(orders), torch.cat(costs)


def choose_removals(costs: Tensor, count: int) -> Tensor:
    """Return how many weights each row loses, long [rows], so that ``count`` go in total for the least sum of costs.

    Rows lose their weights in their own order; the row whose next removal is the cheapest goes next (Algorithm 2).

    Args:
        costs: of each removal of each row in order, [rows, columns].
        count: removals in total.
    """
    table = costs.tolist()
    heap = [(row[0], number) for number, row in enumerate(table) if row]
    heapq.heapify(heap)
    lost = [0] * len(table)
    for _ in range(min(count, costs.numel())):
        _, number = heapq.heappop(heap)
        lost[number] += 1
        if lost[number] < len(table[number]):
            heapq.heappush(heap, (table[number][lost[number]], number))
    return torch.tensor(lost)


def remove(weight: Tensor, inverse: Tensor, chosen: Tensor) -> Tensor:
    """Return the weights after those chosen went to zero and the others made up for them (group OBS), row by row.

    Args:
        weight: [rows, columns].
        inverse: Z, [columns, columns].
        chosen: bool [rows, columns].
    """
    result = weight.clone()
    for row, gone in zip(result, chosen, strict=True):
        p = gone.nonzero().flatten()
        if len(p):
            row -= inverse[:, p] @ torch.linalg.solve(inverse[p][:, p], row[p])
            row[p] = 0
    return result


def block_costs(weight: Tensor, inverse: Tensor, blocks: Tensor) -> Tensor:
    """Return for each block what it costs, summed over all rows, that its columns go to zero together.

    Args:
        weight: [rows, columns].
        inverse: Z, [columns, columns].
        blocks: columns of each block, long [blocks, size]; a block that has gone costs nothing.
    """
    own = weight.T[blocks]
    inner = inverse[blocks.unsqueeze(2), blocks.unsqueeze(1)]
    gone = (inner.diagonal(dim1=1, dim2=2) == 0).all(1)
    inner = inner + torch.eye(blocks.shape[1], dtype=inner.dtype, device=inner.device) * gone.view(-1, 1, 1)
    solved: Tensor = torch.linalg.solve(inner, own)
    return (own * solved).sum((1, 2))


def remove_block_(weight: Tensor, inverse: Tensor, p: Tensor) -> None:
    """Set the columns ``p`` to zero in every row, let the others make up for them, and take them out of Z; in place."""
    factor = torch.linalg.solve(inverse[p][:, p], inverse[p])
    weight -= weight[:, p] @ factor
    weight[:, p] = 0
    inverse -= inverse[:, p] @ factor
    inverse[:, p] = 0
    inverse[p, :] = 0


def quantize_rows(weight: Tensor, inverse: Tensor, step: Tensor, top: int) -> Tensor:
    """Return the whole numbers n, in [-top, top], that OBQ gives; n * step is the quantized weight.

    Weights that are zero go first, so that what was pruned stays pruned. A weight that lies beyond the grid by more
    than half a step goes next, before it drifts further (the outliers of OBQ).

    Args:
        weight: [rows, columns].
        inverse: Z, [columns, columns].
        step: [rows, 1].
        top: largest level; the grid is symmetric.
    """
    parts = []
    steps = step.expand(len(weight), 1).split(_rows_at_once(weight))
    for w, own in zip((rows.clone() for rows in _blocks(weight)), steps, strict=True):
        z = inverse.expand(len(w), -1, -1).clone()
        free, zero = torch.ones_like(w, dtype=torch.bool), w == 0
        levels = torch.zeros_like(w)
        for _ in range(w.shape[1]):
            rounded = (w / own).round().clamp(-top, top)
            error = (w - rounded * own).abs()
            outlying = free & (error > 0.5 * own * (1 + 1e-6))
            p, _ = _cheapest(error.square(), z, free)
            p = torch.where(outlying.any(1), error.masked_fill(~outlying, -1).argmax(1), p)
            p = torch.where((zero & free).any(1), (zero & free).long().argmax(1), p)
            value = rounded.gather(1, p.unsqueeze(1))
            levels.scatter_(1, p.unsqueeze(1), value)
            _move_(w, z, p, (value * own).squeeze(1))
            free.scatter_(1, p.unsqueeze(1), False)
        parts.append(levels)
    return torch.cat(parts)


def _cheapest(error: Tensor, inverse: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return the free weight of least cost of each row, long [rows], and that cost."""
    cost = (error / inverse.diagonal(dim1=1, dim2=2)).masked_fill(~free, torch.inf)
    least, p = cost.min(1)
    return p, least


def _move_(weight: Tensor, inverse: Tensor, p: Tensor, value: Tensor) -> None:
    """Set weight p of each row to a value, let the free ones make up for it, and take it out of Z; in place."""
    each = torch.arange(len(p), device=p.device)
    share = (weight[each, p] - value) / inverse[each, p, p]
    weight -= share.unsqueeze(1) * inverse[each, :, p]
    weight[each, p] = value
    downdate_(inverse, p)


def _rows_at_once(weight: Tensor) -> int:
    return max(1, ELEMENTS // max(1, weight.shape[1] ** 2))


def _blocks(weight: Tensor) -> Iterator[Tensor]:
    yield from weight.split(_rows_at_once(weight))
