"""Trade-offs between accuracy and cost: who is on the front, and how much the front covers, with what certainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
RESAMPLES = 2000


def front(points: Points) -> npt.NDArray[np.bool_]:
    """Return which points no other point beats, bool, shape [points].

    A point is beaten by one that costs no more and is no worse, and better in one of the two. Equal points stay.

    Args:
        points: shape [points, 2]: cost (less is better) and value (more is better).
    """
    cost, value = points[:, :1], points[:, 1:]
    no_worse = (cost >= cost.T) & (value <= value.T)
    better = (cost > cost.T) | (value < value.T)
    beaten: npt.NDArray[np.bool_] = np.any(no_worse & better, axis=1)
    return np.logical_not(beaten)


def hypervolume(points: Points, reference: tuple[float, float]) -> float:
    """Return the area between the front and a reference point, in the units of cost times value.

    Zitzler and Thiele, IEEE Trans. Evol. Comput. 3(4), 1999, in two dimensions: what the points dominate and what the
    reference dominates not. Points that do not dominate the reference add nothing.

    Args:
        points: shape [points, 2]: cost (less is better) and value (more is better).
        reference: cost and value of a point that is worse than all that count.
    """
    cost, value = reference
    inside = points[(points[:, 0] < cost) & (points[:, 1] > value)]
    if not len(inside):
        return 0.0
    kept = inside[front(inside)]
    kept = kept[np.argsort(kept[:, 0])]
    widths = np.diff(np.append(kept[:, 0], cost))
    return float(np.sum(widths * (kept[:, 1] - value)))


@dataclass(frozen=True)
class Area:
    """A hypervolume with its interval.

    Attributes:
        value: of the front of the means over the seeds.
        low: lower end of the 95 % bootstrap interval; equal to ``value`` with one seed.
        high: upper end.
        seeds: that every cell has.
    """

    value: float
    low: float
    high: float
    seeds: int


def area(
    cells: Mapping[str, Mapping[int, tuple[float, float]]], reference: tuple[float, float], resamples: int = RESAMPLES
) -> Area:
    """Return the hypervolume of the cells' mean points, with an interval by the paired percentile bootstrap over seeds.

    Seeds are drawn again for all cells together, since a seed decides the same order of images in each.

    Args:
        cells: cell -> seed -> (cost, value).
        reference: as for ``hypervolume``.
        resamples: of the bootstrap.
    """
    seeds = sorted(set.intersection(*(set(own) for own in cells.values()))) if cells else []
    if not seeds:
        return Area(0.0, 0.0, 0.0, 0)
    values = np.array([[own[seed] for seed in seeds] for own in cells.values()])  # cell, seed, (cost, value)

    def covered(chosen: npt.NDArray[np.int64]) -> float:
        return hypervolume(values[:, chosen].mean(axis=1), reference)

    every = np.arange(len(seeds))
    plain = covered(every)
    if len(seeds) < 2:
        return Area(plain, plain, plain, len(seeds))
    from scipy import stats

    found = stats.bootstrap(
        (every,), covered, vectorized=False, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Area(plain, float(found.low), float(found.high), len(seeds))


def points_of(cells: Mapping[str, Sequence[tuple[float, float]]]) -> Points:
    """Return the mean point of each cell, shape [cells, 2]."""
    return np.array([np.mean(own, axis=0) for own in cells.values()], dtype=np.float64).reshape(-1, 2)
