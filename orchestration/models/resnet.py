"""ResNet18 and ResNet50 (He et al., arXiv:1512.03385), with the names and the structure of torchvision.

Differs from the paper as torchvision does: in the bottleneck the stride sits in the 3x3 convolution ("v1.5").
`width`, `layers` and `stem` make small versions; weights of torchvision load at the defaults.
The same blocks serve the squeeze-excite and the GroupNorm nets through `Parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from orchestration.models.common import he_init_, require
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register

Stem = Literal["imagenet", "cifar"]


@dataclass(frozen=True)
class Parts:
    """What varies between the families: the norm, and the gate on a block's branch; both are given the channels."""

    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    gate: Callable[[int], nn.Module] = nn.Identity


@dataclass(frozen=True)
class Shape:
    """Sizes of a net: blocks per stage, channels of the first stage, and the stem for large or small images."""

    layers: tuple[int, ...]
    width: int = 64
    stem: Stem = "imagenet"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, C, H, W] to [B, channels, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, parts: Parts) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = parts.norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = parts.norm(channels)
        self.se = parts.gate(channels)
        self.downsample = _downsample(inputs, channels, stride, parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        identity = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        out += identity
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: [B, C, H, W] to [B, 4 channels, H / stride, W / stride]."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, parts: Parts) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = parts.norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = parts.norm(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = parts.norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.se = parts.gate(outputs)
        self.downsample = _downsample(inputs, outputs, stride, parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        identity = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        out += identity
        out = self.relu(out)
        return out


def _downsample(inputs: int, outputs: int, stride: int, parts: Parts) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), parts.norm(outputs))


class ResNet(nn.Module):
    """Images [B, C, H, W] to logits [B, num_classes]; H and W are divided by 32 (stem "imagenet") or by 8."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        shape: Shape,
        num_classes: int,
        in_channels: int,
        parts: Parts | None = None,
    ) -> None:
        super().__init__()
        parts = parts or Parts()
        width = shape.width
        large = shape.stem == "imagenet"
        self.conv1 = nn.Conv2d(
            in_channels, width, 7 if large else 3, stride=2 if large else 1, padding=3 if large else 1, bias=False
        )
        self.bn1 = parts.norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        inputs = width
        stages: list[nn.Sequential] = []
        for index, blocks in enumerate(shape.layers):
            channels, stride = width * 2**index, 1 if index == 0 else 2
            first = block(inputs, channels, stride, parts)
            inputs = channels * block.expansion
            stages.append(nn.Sequential(first, *(block(inputs, channels, 1, parts) for _ in range(blocks - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        he_init_(self)
        _init_classifier_(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _init_classifier_(layer: nn.Linear) -> None:
    """Uniform within 1 / sqrt(fan_in), which is what torchvision leaves there."""
    bound = layer.in_features**-0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.uniform_(layer.bias, -bound, bound)


def checked_shape(model: str, layers: tuple[int, ...], width: int, stem: Stem) -> Shape:
    """Return the sizes, once `layers` is known to hold the four stages."""
    require(model, layers=(len(layers) == 4, f"must hold the blocks of 4 stages, got {list(layers)}"))
    return Shape(layers, width, stem)


@register(
    "resnet18",
    summary="ResNet18, torchvision's names and structure, 11.69M parameters",
    inputs=ImageInput(224, small=32),
    small={"num_classes": 10, "width": 8, "stem": "cifar"},
)
def resnet18(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    width: Count = 64,
    layers: tuple[Count, ...] = (2, 2, 2, 2),
    stem: Stem = "imagenet",
) -> nn.Module:
    """Build ResNet18; stem "cifar" (3x3, no pooling) for images of 64 pixels and less."""
    return ResNet(BasicBlock, checked_shape("resnet18", layers, width, stem), num_classes, in_channels)


@register(
    "resnet50",
    summary="ResNet50, torchvision's names and structure, 25.56M parameters",
    inputs=ImageInput(224, small=32),
    small={"num_classes": 10, "width": 8, "layers": (1, 2, 1, 1), "stem": "cifar"},
)
def resnet50(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    width: Count = 64,
    layers: tuple[Count, ...] = (3, 4, 6, 3),
    stem: Stem = "imagenet",
) -> nn.Module:
    """Build ResNet50; stem "cifar" (3x3, no pooling) for images of 64 pixels and less."""
    return ResNet(Bottleneck, checked_shape("resnet50", layers, width, stem), num_classes, in_channels)
