"""What a finished model may cost, as an alternative to stating sparsity and bit ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

TOLERANCE = 0.1
"""A run ends at or below its budget, and not more than this share below it."""


def _above_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


@dataclass(frozen=True)
class Bops:
    """Bit operations, definition ``paper``."""

    relative: float
    """Over those of the dense float model, 0 < relative <= 1."""
    activations: bool = True
    """Whether the layers' inputs are quantized too."""
    unit: ClassVar[str] = "relative BOPs"

    @property
    def limit(self) -> float:
        """The number that is not exceeded."""
        return self.relative

    def faults(self) -> list[str]:
        """What is wrong with it."""
        fine = _above_zero(self.relative) and self.relative <= 1
        return [] if fine else [f"budget: Bops must be above 0 and at most 1, but got {self.relative!r}"]


@dataclass(frozen=True)
class Bytes:
    """Size of the stored tensors: packed weights, their steps, and what stays in floating point."""

    count: int
    """Bytes, at least 1."""
    activations: bool = False
    """Whether the layers' inputs are quantized too; it does not move the size."""
    unit: ClassVar[str] = "bytes"

    @property
    def limit(self) -> float:
        """The number that is not exceeded."""
        return self.count

    def faults(self) -> list[str]:
        """What is wrong with it."""
        fine = isinstance(self.count, int) and not isinstance(self.count, bool) and self.count >= 1
        return [] if fine else [f"budget: Bytes must be a whole number >= 1, but got {self.count!r}"]


@dataclass(frozen=True)
class Latency:
    """Median time of a forward pass of the slimmed float model in torch, on the model's device.

    It is met by sparsity alone: a sparsity is sought at which randomly pruned twins of the model take that long, so the
    finished model meets it as far as its shape and the clock's noise allow.
    """

    seconds: float
    """Seconds per forward pass, > 0."""
    batch: int = 1
    """Examples in a forward pass, >= 1."""
    activations: bool = False
    """Whether the layers' inputs are quantized too; it does not move the time of a float model."""
    unit: ClassVar[str] = "seconds"

    @property
    def limit(self) -> float:
        """The number that is not exceeded."""
        return self.seconds

    def faults(self) -> list[str]:
        """What is wrong with it."""
        faults = []
        if not _above_zero(self.seconds):
            faults.append(f"budget: Latency must be a number of seconds above 0, but got {self.seconds!r}")
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or self.batch < 1:
            faults.append(f"budget: the batch of Latency must be a whole number >= 1, but got {self.batch!r}")
        return faults


Budget = Bops | Bytes | Latency
