"""Image classification with the whole data set in memory, as uint8."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from baselines.schema import Bounds
from orchestration.tasks.augment import flip_and_crop, normalize
from orchestration.tasks.base import (
    WHOLE,
    Loss,
    Part,
    Placement,
    Split,
    classification_loss,
    classification_totals,
    epoch_order,
    generator,
    means,
    stratified_split,
)

Batch = tuple[Tensor, Tensor]


class Examples(NamedTuple):
    """Images uint8 [N, C, H, W] and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Examples:
        """Return the examples at these positions."""
        return Examples(self.images[index], self.labels[index])


@dataclass(kw_only=True)
class ArrayTask(ABC):
    """Base of tasks that fit in memory; a subclass reads the two files and names classes, mean and deviation."""

    batch_size: Annotated[int, Bounds(2)] = 128
    """Images in a training batch; a last batch that is not full is left out."""
    eval_batch_size: Annotated[int, Bounds(1)] = 500
    """Images in an evaluation batch."""
    augment: bool = True
    """Random shifts (and mirroring where it keeps the class) of the training images."""
    label_smoothing: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    """Share of each label that is spread over all classes."""
    limit: Annotated[int, Bounds(100)] | None = None
    """Most images that are taken of the training data, and of the test split, a fixed choice with every class's share;
    null takes all. For trials of the code: its accuracies are not comparable with those of the whole data."""

    classes: ClassVar[int] = 10
    padding: ClassVar[int] = 0
    flip: ClassVar[bool] = False
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    @abstractmethod
    def read_train(self) -> Examples:
        """Return every example that may be trained on or chosen by."""

    @abstractmethod
    def read_test(self) -> Examples:
        """Return the test split; called at the end of a run."""

    @abstractmethod
    def held_out(self, count: int) -> int:
        """Return how many of the training examples are held out for validation."""

    def setup(self, seed: int, placement: Placement) -> None:
        """Read the training examples, hold out the validation split and place both."""
        self._seed, self._placement = seed, placement
        examples = self._limited(self.read_train())
        stays, held = stratified_split(examples.labels, self.held_out(len(examples.labels)))
        self._train, self._val = self._placed(examples.take(stays)), self._placed(examples.take(held))

    def model_options(self) -> Mapping[str, Any]:
        """Return the number of classes and of colour channels, and the side of an image."""
        channels, side = self._train.images.shape[1], self._train.images.shape[-1]
        return {"num_classes": self.classes, "in_channels": channels, "image_size": side}

    def steps_per_epoch(self) -> int:
        """Return the number of full batches."""
        return max(len(self._train.labels) // self._batch_size(), 1)

    def example_inputs(self) -> Tensor:
        """Return the first two training images."""
        return self._images(self._train.images[:2])

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield augmented batches; each has a generator of its own, so that any step can be the first."""
        size = self._batch_size()
        order = epoch_order(len(self._train.labels), self._seed, epoch).to(self._train.images.device)
        for step in range(start_step, self.steps_per_epoch()):
            images, labels = self._train.take(order[step * size : (step + 1) * size])
            if self.augment:
                images = flip_and_crop(images, self.padding, self.flip, generator(self._seed, epoch, step))
            yield self._images(images), labels

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return cross-entropy and accuracy."""
        return classification_loss(model, *batch, smoothing=self.label_smoothing)

    def evaluate(self, model: nn.Module, split: Split) -> Mapping[str, float]:
        """Return mean cross-entropy ("loss") and "accuracy" in 0 .. 1."""
        return means(self.totals(model, split, WHOLE))

    def totals(self, model: nn.Module, split: Split, part: Part) -> Mapping[str, Tensor]:
        """Return the sums of one worker's part of the split."""
        examples = self._val if split == "val" else self._placed(self._limited(self.read_test()))
        own = Examples(part.rows(examples.images), part.rows(examples.labels))
        return classification_totals(model, self._eval_batches(own))

    def calibration_batches(self, count: int) -> list[Tensor]:
        """Return full batches of the training split without augmentation, a fixed choice; fewer if there are fewer."""
        order = torch.randperm(len(self._train.labels), generator=generator(0, 0)).to(self._train.images.device)
        size = self._batch_size()
        count = min(count, len(order) // size)
        return [self._images(self._train.images[order[at * size : (at + 1) * size]]) for at in range(count)]

    def _limited(self, examples: Examples) -> Examples:
        if self.limit is None or self.limit >= len(examples.labels):
            return examples
        return examples.take(stratified_split(examples.labels, self.limit)[1])

    def _batch_size(self) -> int:
        return min(self.batch_size, len(self._train.labels))

    def _placed(self, examples: Examples) -> Examples:
        return Examples(examples.images.to(self._placement.device), examples.labels.to(self._placement.device))

    def _images(self, images: Tensor) -> Tensor:
        return self._placement.images(normalize(images, self.mean, self.std))

    def _eval_batches(self, examples: Examples) -> Iterator[Batch]:
        for start in range(0, len(examples.labels), self.eval_batch_size):
            part = slice(start, start + self.eval_batch_size)
            yield self._images(examples.images[part]), examples.labels[part]
