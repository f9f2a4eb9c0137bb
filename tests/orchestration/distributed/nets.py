"""Small nets in float64, and digits in float64, for comparisons of one worker with several."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from orchestration.tasks.base import WHOLE, Loss
from orchestration.tasks.digits import Digits


@dataclass(kw_only=True)
class Digits64(Digits):
    """Digits whose images and loss are float64; optionally the loss of the second half of one batch is not a number."""

    burst_at: int = -1
    """Step of the run in which that happens; -1 for never."""
    pause: float = 0.0
    """Seconds before each batch: what is stopped must meet a training that still goes on."""

    def _images(self, images: Tensor) -> Tensor:
        return super()._images(images).double()

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        images, labels = batch[:2]
        logits = model(images)
        value = nn.functional.cross_entropy(logits, labels)
        if len(batch) == 3:  # rows that carry the step's verdict
            value = value + batch[2].sum()
        return Loss(value, {"accuracy": (logits.detach().argmax(1) == labels).double().mean()})

    def train_batches(self, epoch: int, start_step: int = 0) -> Any:
        for step, (images, labels) in enumerate(super().train_batches(epoch, start_step), start_step):
            time.sleep(self.pause)
            extra = torch.zeros(len(labels), dtype=torch.float64)
            if epoch * self.steps_per_epoch() + step == self.burst_at:
                extra[-1] = float("nan")
            yield images, labels, extra


class Undivided(Digits64):
    """The same without a way to share an evaluation: the leader does all of it."""

    totals = None  # type: ignore[assignment]

    def evaluate(self, model: nn.Module, split: Any) -> Any:
        return {"accuracy": float(Digits64.totals(self, model, split, WHOLE)["accuracy"]) / 180}


class FrozenNorm(nn.BatchNorm2d):
    """A batch normalisation that keeps the statistics it has."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class Net(nn.Module):
    """Two convolutions with a norm each, and a linear layer."""

    def __init__(self, norm: Any, width: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False), norm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(images)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """Rows of pixels as tokens: a normalised two-layer block with a residual, and a linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(8, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.final, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.flatten(1, 2))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.final(x.mean(1)))  # type: ignore[no-any-return]


def group_norm(num_classes: int = 10) -> nn.Module:
    """A net with GroupNorm."""
    return Net(lambda width: nn.GroupNorm(3, width), 12, num_classes).double()


def layer_norm(num_classes: int = 10) -> nn.Module:
    """A net with LayerNorm."""
    return Tokens(12, num_classes).double()


def frozen_batch_norm(num_classes: int = 10) -> nn.Module:
    """A net whose BatchNorm statistics are frozen."""
    return Net(FrozenNorm, 12, num_classes).double()
