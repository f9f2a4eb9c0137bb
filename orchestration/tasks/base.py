"""The contract of a task, and what image tasks share.

A task of your own is any class or function that returns an object with these methods; name it
``task=package.module:build``. Its keyword arguments become the keys ``task.<key>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from geta_core.errors import ConfigError

Split = Literal["val", "test"]
SPLIT_SEED = 20250216
"""Seed of every validation split: the same images are held out whatever the run's seed."""


class Loss(NamedTuple):
    """What one training batch gives.

    Attributes:
        value: scalar that is minimised.
        metrics: scalars on the device, averaged over an epoch without waiting for the device.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Placement:
    """Where batches go."""

    device: torch.device
    channels_last: bool = False

    def images(self, batch: Tensor) -> Tensor:
        """Move images [B, C, H, W] to the device, in the memory order that the model has."""
        batch = batch.to(self.device, non_blocking=True)
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch


class Task(Protocol):
    """Data and measure of a run.

    The same seed, epoch and step give the same batch, bit for bit, whichever step a training starts from: a resumed
    run depends on it. The test split is not to be opened before ``evaluate(model, "test")``.
    """

    def setup(self, seed: int, placement: Placement) -> None:
        """Read the training data and place it; called once, before everything below."""

    def model_options(self) -> Mapping[str, Any]:
        """Return options for the model builder (num_classes, in_channels, image_size); it takes those it knows."""

    def steps_per_epoch(self) -> int:
        """Return the number of training batches in an epoch."""

    def example_inputs(self) -> Any:
        """Return inputs of the model for its capture: a tensor, a tuple, or a dict of keywords; batch >= 2."""

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch from a step on (both counted from 0)."""

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Run the model on a training batch."""

    def evaluate(self, model: nn.Module, split: Split) -> Mapping[str, float]:
        """Measure the model in evaluation mode; the key "accuracy" is the headline where there is one."""

    def calibration_batches(self, count: int) -> list[Any]:
        """Return up to ``count`` batches of model inputs, formed like ``example_inputs``, from the training data."""


def stratified_split(labels: Tensor, held_out: int, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
    """Hold out examples so that every class keeps its share.

    Args:
        labels: class of each example, int64 [N].
        held_out: number of examples to hold out.
        seed: of the choice within each class.

    Returns:
        Indices that stay and indices held out, each in ascending order.
    """
    count = len(labels)
    if not 0 < held_out < count:
        raise ConfigError([f"task.validation must leave training data: 0 < validation < {count}, but got {held_out}"])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    by_class = order[torch.argsort(labels[order], stable=True)]
    # Every (count / held_out)-th example of the list sorted by class: shares differ by less than one example.
    picks = (torch.arange(held_out, dtype=torch.float64) + 0.5) * (count / held_out)
    held = by_class[picks.long()]
    stays = torch.ones(count, dtype=torch.bool)
    stays[held] = False
    return stays.nonzero().flatten(), held.sort().values


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch's examples, int64 [count]; it depends on nothing but seed and epoch."""
    return torch.randperm(count, generator=generator(seed, epoch))


def generator(seed: int, *position: int) -> torch.Generator:
    """Return a CPU generator that belongs to a seed and a position such as (epoch, step)."""
    # SeedSequence mixes neighbouring positions into independent states; it takes (a, b) and (a, b, 0) for the same.
    state = np.random.SeedSequence([len(position), seed, *position]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor, smoothing: float = 0.0) -> Loss:
    """Return the cross-entropy and the share of right answers of logits [B, classes]."""
    logits = cast(Tensor, model(images))
    value = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    correct = (logits.detach().argmax(1) == labels).float().mean()
    return Loss(value, {"accuracy": correct})


@torch.no_grad()
def classification_metrics(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Measure mean cross-entropy and accuracy in evaluation mode; the model's mode is put back."""
    training = model.training
    model.eval()
    total, loss, correct = 0, None, None
    try:
        for images, labels in batches:
            logits = model(images).float()
            batch_loss = nn.functional.cross_entropy(logits, labels, reduction="sum").double()
            right = (logits.argmax(1) == labels).sum()
            loss = batch_loss if loss is None else loss + batch_loss
            correct = right if correct is None else correct + right
            total += len(labels)
    finally:
        model.train(training)
    if loss is None or correct is None:
        raise ConfigError(["the split holds no examples"])
    return {"loss": loss.item() / total, "accuracy": correct.item() / total}
