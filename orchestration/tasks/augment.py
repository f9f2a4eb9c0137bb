"""Augmentation of whole batches of images, on the device that holds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def flip_and_crop(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``padding`` pixels over a black border and mirror half of them.

    Args:
        images: any dtype [B, C, H, W].
        padding: width of the border on each side, in pixels.
        flip: whether images may be mirrored left to right.
        generator: CPU generator; the same state gives the same result on every device.

    Returns:
        Images of the same shape and dtype.
    """
    batch, channels, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    top, left = shifts.to(images.device, non_blocking=True)
    mirrored = torch.rand(batch, 1, generator=generator).to(images.device, non_blocking=True) < 0.5
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, [padding] * 4)
    index = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    layer = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[index, layer, rows[:, None, :, None], columns[:, None, None, :]]


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 images [B, C, H, W] into float32 with the given mean and deviation per channel (in 0 .. 1)."""
    shape = (1, len(mean), 1, 1)
    offset = (torch.tensor(mean) * 255).view(shape).to(images.device, non_blocking=True)
    scale = (1 / (torch.tensor(std) * 255)).view(shape).to(images.device, non_blocking=True)
    return (images.float() - offset) * scale
