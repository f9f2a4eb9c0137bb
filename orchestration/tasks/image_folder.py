"""Image classification from folders: ``root/train/<class>/*`` and ``root/val/<class>/*``, as ImageNet is kept.

Images are decoded when they are needed. The folder ``val`` is the test split; the validation split of the run is held
out of ``train``, since every choice must be made without the images that the result is measured on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from baselines.schema import Bounds
from geta_core.errors import ConfigError
from orchestration.tasks.augment import IMAGENET_MEAN, IMAGENET_STD, normalize
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
from orchestration.tasks.cifar10 import data_root

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"}
PREFETCH = 2
Batch = tuple[Tensor, Tensor]
Window = Sequence[float] | None
"""Numbers in 0 .. 1 that decide a random crop (area, shape, x, y, mirror); None is the central crop."""


class Index(NamedTuple):
    """Files and their labels, int64 [N]."""

    files: list[Path]
    labels: Tensor

    def take(self, at: Tensor) -> Index:
        """Return the entries at these positions."""
        return Index([self.files[position] for position in at.tolist()], self.labels[at])


@dataclass(kw_only=True)
class ImageFolder:
    """Folders of images by class, with random resized crops and mirroring (He et al., arXiv:1512.03385)."""

    root: str | None = None
    """Folder that holds train and val; null means the environment variable GETA_DATA."""
    size: Annotated[int, Bounds(8)] = 224
    """Side of the images that the model is given, in pixels."""
    batch_size: Annotated[int, Bounds(2)] = 128
    """Images in a training batch; a last batch that is not full is left out."""
    eval_batch_size: Annotated[int, Bounds(1)] = 128
    """Images in an evaluation batch."""
    validation: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.02
    """Share of the images in train that is held out for every choice."""
    smallest_crop: Annotated[float, Bounds(0, 1, above=True)] = 0.08
    """Smallest share of an image's area that a training crop covers."""
    label_smoothing: Annotated[float, Bounds(0, 1, below=True)] = 0.0
    """Share of each label that is spread over all classes."""
    workers: Annotated[int, Bounds(1)] = 4
    """Threads that decode images."""

    def setup(self, seed: int, placement: Placement) -> None:
        """List the training images and hold out the validation split."""
        self._seed, self._placement = seed, placement
        self._root = data_root(self.root, "image_folder")
        self._classes, index = read_index(self._root / "train")
        for name in ("train", "val"):
            if not (self._root / name).is_dir():
                raise ConfigError([f"{self._root} must hold the folders train and val, but {name} is missing"])
        held_out = max(round(self.validation * len(index.files)), 1)
        stays, held = stratified_split(index.labels, held_out)
        self._train, self._val = index.take(stays), index.take(held)

    def model_options(self) -> Mapping[str, Any]:
        """Return the number of classes and of colour channels, and the side of an image."""
        return {"num_classes": len(self._classes), "in_channels": 3, "image_size": self.size}

    def steps_per_epoch(self) -> int:
        """Return the number of full batches."""
        return max(len(self._train.files) // self._batch_size(), 1)

    def example_inputs(self) -> Tensor:
        """Return the first two training images."""
        return self.calibration_batches(1)[0][:2]

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield augmented batches; each has a generator of its own, so that any step can be the first."""
        yield from self.part_batches(WHOLE, epoch, start_step)

    def part_batches(self, part: Part, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield one worker's rows of each batch; only these are decoded."""
        size = self._batch_size()
        order = epoch_order(len(self._train.files), self._seed, epoch)

        def jobs() -> Iterator[tuple[Index, list[Window]]]:
            for step in range(start_step, self.steps_per_epoch()):
                own = self._train.take(part.rows(order[step * size : (step + 1) * size]))
                draws = torch.rand(size, 5, generator=generator(self._seed, epoch, step))
                yield own, list(part.rows(draws).tolist())

        yield from self._decoded(jobs())

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return cross-entropy and accuracy."""
        return classification_loss(model, *batch, smoothing=self.label_smoothing)

    def evaluate(self, model: nn.Module, split: Split) -> Mapping[str, float]:
        """Return mean cross-entropy ("loss") and "accuracy" in 0 .. 1, on central crops."""
        return means(self.totals(model, split, WHOLE))

    def totals(self, model: nn.Module, split: Split, part: Part) -> Mapping[str, Tensor]:
        """Return the sums of one worker's part of the split; only its images are decoded."""
        index = self._val if split == "val" else self._test()
        own = index.take(part.rows(torch.arange(len(index.files))))
        return classification_totals(model, self._decoded(self._central(own)))

    def calibration_batches(self, count: int) -> list[Tensor]:
        """Return full batches of central crops of the training split, a fixed choice; fewer if there are fewer."""
        size = self._batch_size()
        order = torch.randperm(len(self._train.files), generator=generator(0, 0))
        order = order[: min(count, len(order) // size) * size]
        chosen = self._train.take(order)
        return [images for images, _ in self._decoded(self._central(chosen, size))]

    def _test(self) -> Index:
        classes, index = read_index(self._root / "val")
        if classes != self._classes:
            differing = sorted(set(classes) ^ set(self._classes))[:3]
            raise ConfigError([f"{self._root}: train and val must hold the same classes, but differ in {differing}"])
        return index

    def _batch_size(self) -> int:
        return min(self.batch_size, len(self._train.files))

    def _central(self, index: Index, size: int | None = None) -> Iterator[tuple[Index, list[Window]]]:
        step = size or self.eval_batch_size
        for start in range(0, len(index.files), step):
            part = Index(index.files[start : start + step], index.labels[start : start + step])
            yield part, [None] * len(part.files)

    def _decoded(self, jobs: Iterator[tuple[Index, list[Window]]]) -> Iterator[Batch]:
        decode = _decoder(self.size, self.smallest_crop)
        with ThreadPoolExecutor(self.workers) as pool:
            pending: deque[tuple[list[Future[Tensor]], Tensor]] = deque()
            try:
                for part, windows in jobs:
                    images = [pool.submit(decode, *job) for job in zip(part.files, windows, strict=True)]
                    pending.append((images, part.labels))
                    if len(pending) > PREFETCH:
                        yield self._batch(*pending.popleft())
                while pending:
                    yield self._batch(*pending.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _batch(self, images: list[Future[Tensor]], labels: Tensor) -> Batch:
        stacked = torch.stack([each.result() for each in images])
        device = self._placement.device
        pixels = normalize(stacked.to(device, non_blocking=True), IMAGENET_MEAN, IMAGENET_STD)
        return self._placement.images(pixels), labels.to(device)


def read_index(folder: Path) -> tuple[list[str], Index]:
    """List the images of a folder of class folders, classes in alphabetical order.

    Raises:
        ConfigError: when there is no class folder, or a class has no image.
    """
    if not folder.is_dir():
        raise ConfigError([f"task.root must hold the folders train and val, but {folder} does not exist"])
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ConfigError([f"{folder} must hold one folder per class, but holds none"])
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ConfigError([f"{folder / name} must hold images ({', '.join(sorted(SUFFIXES))}), but holds none"])
        files += found
        labels += [label] * len(found)
    return classes, Index(files, torch.tensor(labels))


def crop_box(width: int, height: int, window: Sequence[float], smallest: float) -> tuple[float, float, float, float]:
    """Return the random crop (left, top, right, bottom) of an image, in pixels.

    Args:
        width: of the image.
        height: of the image.
        window: numbers in 0 .. 1: area, shape, horizontal place, vertical place.
        smallest: smallest share of the area.
    """
    area = width * height * (smallest + (1 - smallest) * window[0])
    shape = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * window[1])
    w, h = min(math.sqrt(area * shape), width), min(math.sqrt(area / shape), height)
    left, top = (width - w) * window[2], (height - h) * window[3]
    return left, top, left + w, top + h


def central_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Return the central square that covers 224/256 of the shorter side."""
    side = min(width, height) * 224 / 256
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _decoder(size: int, smallest: float) -> Callable[[Path, Window], Tensor]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ConfigError(["task=image_folder decodes images with pillow; install pillow"]) from error
    import numpy as np

    def decode(path: Path, window: Window) -> Tensor:
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError([f"{path} cannot be read as an image: {error}"]) from error
        box = central_box(*image.size) if window is None else crop_box(*image.size, window, smallest)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if window is not None and window[4] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    return decode
