"""The digits as sequences: 64 pixels of 17 shades are 64 tokens of a vocabulary of 17."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from baselines.schema import Bounds
from orchestration.tasks.base import (
    Loss,
    Placement,
    Split,
    classification_loss,
    classification_metrics,
    epoch_order,
    stratified_split,
)
from orchestration.tasks.digits import HIGHEST, Digits


@dataclass(kw_only=True)
class DigitTokens:
    """A task for models of token ids [B, 64]."""

    batch_size: Annotated[int, Bounds(2)] = 64
    """Sequences in a training batch; a last batch that is not full is left out."""
    validation: Annotated[int, Bounds(10)] = 180
    """Training sequences held out for every choice."""
    _data: dict[str, tuple[Tensor, Tensor]] = field(init=False, default_factory=dict)
    _seed: int = field(init=False, default=0)

    def setup(self, seed: int, placement: Placement) -> None:
        """Read the images and hold the validation split out."""
        digits = Digits()
        train, test = digits.read_train(), digits.read_test()
        stays, held = stratified_split(train.labels, self.validation)
        self._seed = seed
        self._data = {
            "train": (_tokens(train.images[stays]), train.labels[stays]),
            "val": (_tokens(train.images[held]), train.labels[held]),
            "test": (_tokens(test.images), test.labels),
        }

    def model_options(self) -> Mapping[str, Any]:
        """What the task states of a model."""
        return {"num_classes": 10}

    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return len(self._data["train"][1]) // self.batch_size

    def example_inputs(self) -> Tensor:
        """Two sequences."""
        return self._data["train"][0][:2]

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch."""
        tokens, labels = self._data["train"]
        order = epoch_order(len(labels), self._seed, epoch)
        for step in range(start_step, self.steps_per_epoch()):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield tokens[rows], labels[rows]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        """Cross-entropy."""
        return classification_loss(model, *batch)

    def evaluate(self, model: nn.Module, split: Split) -> Mapping[str, float]:
        """Loss and accuracy."""
        tokens, labels = self._data[split]
        return classification_metrics(model, zip(tokens.split(90), labels.split(90), strict=True))

    def calibration_batches(self, count: int) -> list[Tensor]:
        """Training sequences."""
        return list(self._data["train"][0].split(self.batch_size)[:count])


def _tokens(images: Tensor) -> Tensor:
    return torch.div(images, 240 // HIGHEST, rounding_mode="floor").flatten(1).long()
