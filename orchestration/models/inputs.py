"""What a model reads: the shape of one example and random examples of it, for tests, captures and benchmarks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class ModelInput(ABC):
    """Shape and sample of one input; `options` are the factory's options with its defaults filled in."""

    @abstractmethod
    def shape(self, options: Mapping[str, Any], small: bool = False) -> tuple[int, ...]:
        """Return the shape of one example, without the batch; `small` is the shape that the small version is for."""

    @abstractmethod
    def sample(self, batch: int, options: Mapping[str, Any], small: bool = False, seed: int = 0) -> Tensor:
        """Return `batch` random examples, the same for the same seed."""


@dataclass(frozen=True)
class ImageInput(ModelInput):
    """Square images [in_channels, size, size] in float32.

    The option `image_size` goes before `size`, also where the factory has none and it only sizes the example.
    """

    size: int
    small: int | None = None

    def shape(self, options: Mapping[str, Any], small: bool = False) -> tuple[int, ...]:
        """Return (channels, side, side)."""
        side = options.get("image_size") or (self.small if small and self.small else self.size)
        return (options["in_channels"], side, side)

    def sample(self, batch: int, options: Mapping[str, Any], small: bool = False, seed: int = 0) -> Tensor:
        """Return standard normal pixels."""
        import torch

        return torch.randn(batch, *self.shape(options, small), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class TokenInput(ModelInput):
    """Sequences of token ids [min(length, sequence_length)], int64, below the option `vocab_size`."""

    length: int

    def shape(self, options: Mapping[str, Any], small: bool = False) -> tuple[int, ...]:
        """Return (tokens,)."""
        return (min(self.length, options["sequence_length"]),)

    def sample(self, batch: int, options: Mapping[str, Any], small: bool = False, seed: int = 0) -> Tensor:
        """Return uniform token ids."""
        import torch

        shape = (batch, *self.shape(options, small))
        return torch.randint(options["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class FeatureInput(ModelInput):
    """Sequences of vectors [length, width] in float32."""

    length: int

    def shape(self, options: Mapping[str, Any], small: bool = False) -> tuple[int, ...]:
        """Return (tokens, width)."""
        return (self.length, options["width"])

    def sample(self, batch: int, options: Mapping[str, Any], small: bool = False, seed: int = 0) -> Tensor:
        """Return standard normal vectors."""
        import torch

        return torch.randn(batch, *self.shape(options, small), generator=torch.Generator().manual_seed(seed))
