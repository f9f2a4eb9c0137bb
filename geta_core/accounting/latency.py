"""How long a forward pass takes, with its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from geta_core.graph import ExampleInputs
from geta_core.slim.verify import with_batch

WARM_UP, REPEATS = 3, 20
SECONDS = 4.0
"""No more repeats are begun after this many seconds, once there are five."""
FEWEST = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated forward passes."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    repeats: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def timed(call: Callable[[], object], repeats: int = REPEATS) -> Timing:
    """Time up to ``repeats`` calls, after a warm-up."""
    times: list[float] = []
    for _ in range(WARM_UP):
        call()
    begun = time.perf_counter()
    while len(times) < repeats and (len(times) < FEWEST or time.perf_counter() - begun < SECONDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high, len(times))


@torch.inference_mode()
def forward_seconds(model: nn.Module, inputs: ExampleInputs, batch: int, repeats: int = REPEATS) -> Timing:
    """Time forward passes of ``batch`` examples in evaluation mode, on the device of the inputs.

    Args:
        model: on that device; its mode is restored.
        inputs: example; rows are repeated in turn where there are fewer than ``batch``, and equal rows may be faster:
            processors foresee the branches of a maximum that they have just taken.
        batch: examples in a pass.
        repeats: most passes that are timed.
    """
    rows = with_batch(inputs, batch)
    modes = {module: module.training for module in model.modules()}
    model.eval()

    def call() -> None:
        rows.run(model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    try:
        return timed(call, repeats)
    finally:
        for module, training in modes.items():
            module.training = training
