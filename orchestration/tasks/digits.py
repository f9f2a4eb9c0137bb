"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries (UCI optical recognition of digits)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from baselines.schema import Bounds
from geta_core.errors import ConfigError
from orchestration.tasks.arrays import ArrayTask, Examples
from orchestration.tasks.base import stratified_split

TEST_IMAGES = 360
TEST_SEED = 8
HIGHEST = 16
"""Pixels are whole numbers from 0 to 16; they are stored in steps of 15, so that 240 is white."""


@dataclass(kw_only=True)
class Digits(ArrayTask):
    """Ten classes, one channel; 360 images are the test split, 180 of the others the validation split."""

    batch_size: Annotated[int, Bounds(2)] = 64
    """Images in a training batch; a last batch that is not full is left out."""
    validation: Annotated[int, Bounds(10)] = 180
    """Training images held out for every choice."""

    padding = 1
    mean = (0.2869,)
    std = (0.3541,)

    def read_train(self) -> Examples:
        """Return the 1,437 images outside the test split."""
        examples, rest, _ = _read()
        return examples.take(rest)

    def read_test(self) -> Examples:
        """Return the 360 test images."""
        examples, _, test = _read()
        return examples.take(test)

    def held_out(self, count: int) -> int:
        """Return ``validation``."""
        return self.validation


def _read() -> tuple[Examples, torch.Tensor, torch.Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(["task=digits reads the images that scikit-learn carries; install scikit-learn"]) from error
    data = load_digits()
    images = torch.from_numpy(data.images).to(torch.uint8).mul(240 // HIGHEST).unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    rest, test = stratified_split(labels, TEST_IMAGES, TEST_SEED)
    return Examples(images, labels), rest, test
