"""CIFAR-10 (Krizhevsky 2009) from the directory ``cifar-10-batches-py`` in its published layout.

The files are Python pickles. They are read by an unpickler that rebuilds numpy arrays and plain containers and refuses
everything else, so that a file from elsewhere cannot run code.
"""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from baselines.schema import Bounds
from geta_core.errors import ConfigError
from orchestration.tasks.arrays import ArrayTask, Examples
from orchestration.tasks.augment import IMAGENET_MEAN, IMAGENET_STD

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
# numpy's constructor moved between versions; both places name the same function.
ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(kw_only=True)
class Cifar10(ArrayTask):
    """Ten classes of 32x32 colour images; 5,000 of the 50,000 training images are the validation split.

    Mirroring and shifts of up to 4 pixels, ImageNet's mean and deviation (as in the released code of arXiv:2502.16638).
    """

    root: str | None = None
    """Folder that holds cifar-10-batches-py; null means the environment variable GETA_DATA."""
    download: bool = False
    """Fetch the data set into root when it is not there."""
    validation: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.1
    """Share of the training images held out for every choice."""

    padding = 4
    flip = True
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def read_train(self) -> Examples:
        """Return the 50,000 training images."""
        folder = self._folder()
        parts = [read_batch(folder / name) for name in TRAIN_FILES]
        return Examples(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))

    def read_test(self) -> Examples:
        """Return the 10,000 test images."""
        return read_batch(self._folder() / TEST_FILE)

    def held_out(self, count: int) -> int:
        """Return the tenth (or the share asked for) that is held out."""
        return max(round(self.validation * count), 1)

    def _folder(self) -> Path:
        root = data_root(self.root, "cifar10")
        folder = root / FOLDER
        files = (*TRAIN_FILES, TEST_FILE)
        if self.download and not all((folder / name).is_file() for name in files):
            from orchestration.tasks.download import fetch_cifar10

            fetch_cifar10(root)
        if not folder.is_dir():
            raise ConfigError([f"task.root must hold the folder {FOLDER}, but {root} does not; {_ADVICE}"])
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise ConfigError([f"{folder} is incomplete: {', '.join(missing)} missing; {_ADVICE}"])
        return folder


_ADVICE = "give another task.root, or task.download=true"


def data_root(root: str | None, task: str) -> Path:
    """Return the folder of a data set: ``task.root``, else the environment variable GETA_DATA.

    Raises:
        ConfigError: when neither is given or the folder does not exist.
    """
    place = root or os.environ.get("GETA_DATA")
    if not place:
        raise ConfigError([f"task={task} needs its data: give task.root=FOLDER or set GETA_DATA"])
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ConfigError([f"task.root must be a folder, but {folder} does not exist"])
    return folder


def read_batch(path: Path) -> Examples:
    """Read one file of the published layout.

    Raises:
        ConfigError: when the file is damaged or holds something else.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        pixels = np.asarray(content["data"])
        labels = torch.tensor(content["labels"], dtype=torch.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError([f"{path} is damaged or no CIFAR-10 file ({type(error).__name__}: {error})"]) from error
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072) or len(labels) == 0:
        shape = f"{pixels.dtype} {list(pixels.shape)} with {len(labels)} labels"
        raise ConfigError([f"{path} must hold uint8 [N, 3072] with N labels, but holds {shape}"])
    if not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise ConfigError([f"{path} must hold labels from 0 to 9"])
    return Examples(torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32), labels)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")
        return super().find_class(module, name)
