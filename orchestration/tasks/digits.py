"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries (UCI optical recognition of digits)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from baselines.schema import Bounds
from geta_core.errors import ConfigError
from orchestration.tasks.arrays import ArrayTask, Examples
from orchestration.tasks.base import stratified_split

TEST_IMAGES = 360
TEST_SEED = 8
SIDE = 8
"""Pixels of a side."""
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
    import numpy as np

    # The file itself is read: importing scikit-learn for it would take seconds.
    rows = np.loadtxt(_file(), delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(rows[:, :-1].reshape(-1, 1, SIDE, SIDE)).mul(240 // HIGHEST)
    labels = torch.from_numpy(rows[:, -1]).long()
    rest, test = stratified_split(labels, TEST_IMAGES, TEST_SEED)
    return Examples(images, labels), rest, test


def _file() -> Path:
    try:
        found = importlib.util.find_spec("sklearn")
    except ImportError:
        found = None
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        if (path := Path(place, "datasets", "data", "digits.csv.gz")).is_file():
            return path
    raise ConfigError(["task=digits reads the images that scikit-learn carries; install scikit-learn"])
