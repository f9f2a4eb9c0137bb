"""The contract of a task, and what image tasks share.

A task of your own is any class or function that returns an object with these methods; name it
``task=package.module:build``. Its keyword arguments become the keys ``task.<key>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

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


class Part(NamedTuple):
    """One worker's share: number ``rank`` of ``size`` consecutive parts whose sizes differ by at most one."""

    rank: int = 0
    size: int = 1

    def bounds(self, count: int) -> tuple[int, int]:
        """Return where the part of ``count`` things starts and ends."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor's first dimension."""
        start, end = self.bounds(len(tensor))
        return tensor[start:end]


WHOLE = Part()


@runtime_checkable
class DividedBatches(Protocol):
    """What a task may add so that several workers need not each form the whole batch.

    Without it every worker forms the whole batch and keeps its rows.
    """

    def part_batches(self, part: Part, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yield the rows ``part.bounds(batch size)`` of each batch that ``train_batches`` yields, bit for bit."""


@runtime_checkable
class DividedEvaluation(Protocol):
    """What a task may add so that several workers share an evaluation; without it the leader does all of it."""

    def totals(self, model: nn.Module, split: Split, part: Part) -> Mapping[str, Tensor]:
        """Return sums over a part of the split, as scalars, and their number as "examples".

        Sums over all parts, each divided by the examples, are what ``evaluate`` gives.
        """


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


def classification_metrics(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Measure mean cross-entropy and accuracy in evaluation mode; the model's mode is put back."""
    return means(classification_totals(model, batches))


@torch.no_grad()
def classification_totals(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Sum the cross-entropy ("loss") and the right answers ("accuracy") over "examples", in evaluation mode.

    The model's mode is put back.
    """
    training = model.training
    model.eval()
    total = 0
    loss, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    try:
        for images, labels in batches:
            logits = model(images).float()
            loss = loss + nn.functional.cross_entropy(logits, labels, reduction="sum").double()
            correct = correct + (logits.argmax(1) == labels).sum()
            total += len(labels)
    finally:
        model.train(training)
    return {"loss": loss, "accuracy": correct, "examples": torch.tensor(total)}


def means(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """Divide sums by the number of "examples".

    Raises:
        ConfigError: when there are none.
    """
    examples = totals["examples"].item()
    if not examples:
        raise ConfigError(["the split holds no examples"])
    return {name: value.item() / examples for name, value in totals.items() if name != "examples"}
