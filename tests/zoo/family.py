"""What a family is: a builder of one small model with random weights, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["cnn", "transformer", "other"]
VOCABULARY = 50
"""Token ids that the inputs use; every language model of the zoo has at least as many embeddings."""


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture.

    ``inputs(batch, length)`` are what ``prepare`` accepts; ``length`` is None where the family has no length that can
    be chosen, otherwise one of ``lengths`` (the second of which the model meets only after it was slimmed).
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int | None], Any]
    kind: Kind = "other"
    needs: tuple[str, ...] = ()
    lengths: tuple[int, int] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Further fields of the CompressionConfig, with which the family is prepared."""

    def example(self, batch: int = 2, *, second: bool = False) -> Any:
        """The same inputs each time; ``second`` asks for the second length."""
        torch.manual_seed(17)
        length = None if self.lengths is None else self.lengths[int(second)]
        return self.inputs(batch, length)

    def model(self) -> nn.Module:
        """The dense model in float32, the same each time: no parameter and no running statistic has a special value."""
        torch.manual_seed(11)
        return randomise_(self.build())


def randomise_(model: nn.Module) -> nn.Module:
    """Move every parameter off its initial value (zeros and ones among them), and set running statistics at random."""
    generator = torch.Generator().manual_seed(5)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            wide = max(1, parameter.numel() // max(1, parameter.shape[0])) if parameter.dim() > 1 else 25
            parameter.add_(noise(parameter) * (0.5 * spread if spread > 0 else wide**-0.5))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.copy_(0.2 * noise(module.running_mean))
                module.running_var.copy_(1 + 0.5 * torch.rand(module.running_var.shape, generator=generator))
    return model


def images(side: int, channels: int = 3, width: int | None = None) -> Callable[[int, int | None], Tensor]:
    """Random images of one size."""
    return lambda batch, length: torch.randn(batch, channels, side, width or side)


def token_ids(batch: int, length: int | None) -> Tensor:
    """Random token ids; small ones, which configurations use for padding, are left out."""
    return torch.randint(5, VOCABULARY, (batch, length or 8))
