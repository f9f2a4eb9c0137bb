"""ResNet20, ResNet32 and ResNet56 for CIFAR (He et al., arXiv:1512.03385, section 4.2).

Differs from that section: where the shape changes, the shortcut is a 1x1 convolution with batch normalisation
(option B of the paper) and not the padded identity, as GETA has it (arXiv:2502.16638).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestration.models.common import he_init_
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register


class CifarBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: [B, C, H, W] to [B, channels, H / stride, W / stride]."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of `blocks` blocks of width, 2 width and 4 width channels; depth 6 blocks + 2."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def _stage(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(inputs, channels, stride)
    return nn.Sequential(first, *(CifarBlock(channels, channels, 1) for _ in range(blocks - 1)))


@register("resnet20", summary="ResNet20 for CIFAR, 0.27M parameters", inputs=ImageInput(32), small={"width": 4})
def resnet20(*, num_classes: Count = 10, in_channels: Count = 3, width: Count = 16) -> nn.Module:
    """Build ResNet20; `width` channels in the first stage."""
    return CifarResNet(3, num_classes, in_channels, width)


@register("resnet32", summary="ResNet32 for CIFAR, 0.47M parameters", inputs=ImageInput(32), small={"width": 4})
def resnet32(*, num_classes: Count = 10, in_channels: Count = 3, width: Count = 16) -> nn.Module:
    """Build ResNet32; `width` channels in the first stage."""
    return CifarResNet(5, num_classes, in_channels, width)


@register("resnet56", summary="ResNet56 for CIFAR, 0.86M parameters", inputs=ImageInput(32), small={"width": 4})
def resnet56(*, num_classes: Count = 10, in_channels: Count = 3, width: Count = 16) -> nn.Module:
    """Build ResNet56; `width` channels in the first stage."""
    return CifarResNet(9, num_classes, in_channels, width)
