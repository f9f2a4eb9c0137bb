"""Networks that make images or find things in them: a diffusion U-Net, super-resolution, a YOLO-style detector."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.family import Family


class TimeResidual(nn.Module):
    """The block of a diffusion U-Net: group normalization, and a shift from the time step."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(time, 2 * out)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        y = self.norm2(y) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(y))


class PixelAttention(nn.Module):
    """Self-attention over the pixels, from one convolution for queries, keys and values."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(rows, 3, self.heads, -1, height * width).unbind(1)
        weight = torch.einsum("bhdq,bhdk->bhqk", q * q.shape[2] ** -0.5, k).softmax(dim=-1)
        mixed = torch.einsum("bhqk,bhdk->bhdq", weight, v)
        return x + self.out(mixed.reshape(rows, -1, height, width))


class DiffusionUNet(nn.Module):
    """Two resolutions, sinusoidal time embedding, attention in the middle, concatenated skips."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        time = 2 * width
        self.width = width
        self.embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down1 = TimeResidual(width, width, time)
        self.shrink = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.down2 = TimeResidual(width, 2 * width, time)
        self.middle, self.attention = TimeResidual(2 * width, 2 * width, time), PixelAttention(2 * width, 4)
        self.up2 = TimeResidual(4 * width, 2 * width, time)
        self.grow = nn.Conv2d(2 * width, width, 3, padding=1)
        self.up1 = TimeResidual(2 * width, width, time)
        self.norm, self.head = nn.GroupNorm(4, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        half = self.width // 2
        rate = torch.exp(torch.arange(half, dtype=x.dtype, device=x.device) * (-math.log(1e4) / half))
        angles = step[:, None] * rate
        time = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        first = self.down1(self.stem(x), time)
        second = self.down2(self.shrink(first), time)
        y = self.attention(self.middle(second, time))
        y = self.up2(torch.cat([y, second], dim=1), time)
        y = self.grow(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        return self.head(F.silu(self.norm(self.up1(torch.cat([y, first], dim=1), time))))


class Cascade(nn.Module):
    """A cascading block (CARN): every step sees all earlier ones, joined by 1x1 convolutions of groups of one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(2)
        )
        self.joins = nn.ModuleList(nn.Conv2d(width * (i + 2), width, 1) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for body, join in zip(self.bodies, self.joins, strict=True):
            made = torch.relu(body(x) + x)
            seen = torch.cat([seen, made], dim=1)
            x = torch.relu(join(seen))
        return x


class SuperResolution(nn.Module):
    """Twice the resolution by a pixel shuffle, with a bilinear path beside the network."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(Cascade(width), Cascade(width))
        self.up, self.shuffle = nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.head(torch.relu(self.shuffle(self.up(self.body(y) + y))))
        return y + F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def convolution(channels: int, out: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalization and SiLU."""
    layers = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.SiLU()
    return nn.Sequential(*layers)


class Partial(nn.Module):
    """A cross-stage partial block: half of the channels pass a chain of residual blocks."""

    def __init__(self, channels: int, *, split: bool) -> None:
        super().__init__()
        half = channels // 2
        self.split = split
        self.enter = convolution(channels, channels) if split else convolution(channels, half)
        self.beside = None if split else convolution(channels, half)
        self.chain = nn.ModuleList(nn.Sequential(convolution(half, half), convolution(half, half, 3)) for _ in range(2))
        self.leave = convolution(4 * half if split else channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.beside is None:
            parts = list(self.enter(x).chunk(2, dim=1))
            for block in self.chain:
                parts.append(parts[-1] + block(parts[-1]))
            return self.leave(torch.cat(parts, dim=1))
        y = self.enter(x)
        for block in self.chain:
            y = y + block(y)
        return self.leave(torch.cat([y, self.beside(x)], dim=1))


class Yolo(nn.Module):
    """Backbone, spatial pyramid pooling, two scales with paths up and down, and heads per scale."""

    def __init__(self, width: int = 8, *, split: bool) -> None:
        super().__init__()
        self.split = split
        self.stem = convolution(3, width, 3, 2)
        self.stage1 = nn.Sequential(convolution(width, 2 * width, 3, 2), Partial(2 * width, split=split))
        self.stage2 = nn.Sequential(convolution(2 * width, 4 * width, 3, 2), Partial(4 * width, split=split))
        self.pool_in, self.pool_out = convolution(4 * width, 2 * width), convolution(8 * width, 4 * width)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.lateral = convolution(4 * width, 2 * width)
        self.up, self.down = Partial(4 * width, split=split), convolution(4 * width, 2 * width, 3, 2)
        self.last = Partial(4 * width, split=split)
        # Scores and boxes: apart for each scale, or in one convolution for three anchors.
        heads = (4 * 8, 6) if split else (3 * (4 + 1 + 6),)
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(4 * width, out, 1) for out in heads) for _ in range(2))
        self.register_buffer("bins", torch.arange(8, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.stage1(self.stem(x))
        y = self.pool_in(self.stage2(first))
        pooled = [y]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        y = self.lateral(self.pool_out(torch.cat(pooled, dim=1)))
        fine = self.up(torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), first], dim=1))
        coarse = self.last(torch.cat([self.down(fine), y], dim=1))
        return [self._decoded(heads, scale) for heads, scale in zip(self.heads, (fine, coarse), strict=True)]

    def _decoded(self, heads: nn.ModuleList, x: Tensor) -> Tensor:
        raw = [head(x).flatten(2) for head in heads]
        if not self.split:
            return raw[0].view(x.shape[0], 3, 11, -1).transpose(2, 3).sigmoid()
        sides = raw[0].view(x.shape[0], 4, 8, -1).softmax(dim=2)
        return torch.cat([torch.einsum("bskp,k->bsp", sides, self.bins.to(sides.dtype)), raw[1].sigmoid()], dim=1)


def families() -> Iterator[Family]:
    """Five networks without a package of their own."""

    def noisy(batch: int, length: int | None) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 3, 16, 16), torch.linspace(1, 50, batch)

    def picture(batch: int, length: int | None) -> Tensor:
        return torch.randn(batch, 3, 16, 16)

    def large(batch: int, length: int | None) -> Tensor:
        return torch.randn(batch, 3, 32, 32)

    yield Family("net/diffusion_unet", DiffusionUNet, noisy, "cnn")
    yield Family("net/super_resolution", SuperResolution, picture, "cnn")
    yield Family("net/yolo_anchors", lambda: Yolo(split=False), large, "cnn")
    yield Family("net/yolo_anchor_free", lambda: Yolo(split=True), large, "cnn")
