"""Time, interleaving and spread.

Machines drift: other processes, caches, clock frequencies. Therefore the variants of a comparison take turns inside a
round, a ratio is formed inside each round, and the median over the rounds is what counts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


class Clock:
    """Seconds of a device.

    On the CPU with one thread it is the CPU time of this process, which does not run while another process has the
    core; with several threads it is the wall time; on CUDA the wall time after the device has ended its work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "wall"
        if device.type == "cpu" and torch.get_num_threads() == 1:
            self.kind = "cpu"

    def now(self) -> float:
        """Return the time; waits for the device."""
        if self.kind == "cpu":
            return time.process_time()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, action: Callable[[], object]) -> float:
        """Return how long the action takes."""
        started = self.now()
        action()
        return self.now() - started


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def times(self, other: Spread) -> Spread:
        """Return the product of two ratios."""
        return Spread(self.median * other.median, self.low * other.low, self.high * other.high)


def take_turns(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run each variant once per round, in an order drawn anew; the first round only warms up and is not counted.

    In an order that only rotates each variant would always follow the same other one, and what that one leaves in the
    caches and in the allocator would be counted for or against it.

    Args:
        variants: each returns what it measured.
        rounds: rounds that count.
    """
    names = list(variants)
    measured: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(names, len(names)):
            value = variants[name]()
            if number:
                measured[name].append(value)
    return measured


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of the ratios inside the rounds."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
