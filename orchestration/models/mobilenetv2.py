"""MobileNetV2 (Sandler et al., arXiv:1801.04381), with the names and the structure of torchvision (weights load).

Inverted residuals: 1x1 expansion, 3x3 depthwise, linear 1x1 projection; relu6. Differs: stem "cifar" keeps the side
in the stem and in the second stage, for images of 64 pixels and less.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from orchestration.models.common import he_init_
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count, Scale, Share
from orchestration.models.registry import register

# Expansion, channels, blocks, stride: table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def round_channels(value: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least `divisor`, and never more than 10 % below `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class ConvNormActivation(nn.Sequential):
    """Convolution, batch normalisation, relu6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [ConvNormActivation(inputs, hidden, 1)]
        layers += [
            ConvNormActivation(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = x + self.conv(x) if self.use_res_connect else self.conv(x)
        return out


class MobileNetV2(nn.Module):
    """Images [B, C, H, W] to logits [B, num_classes]; H and W are divided by 32 (stem "imagenet") or by 8."""

    def __init__(
        self, num_classes: int, in_channels: int, width: float, last: int, dropout: float, small_images: bool
    ) -> None:
        super().__init__()
        channels = round_channels(32 * width)
        layers: list[nn.Module] = [ConvNormActivation(in_channels, channels, 3, stride=1 if small_images else 2)]
        for stage, (expansion, base, blocks, stride) in enumerate(STAGES):
            outputs = round_channels(base * width)
            first = 1 if small_images and stage == 1 else stride
            for block in range(blocks):
                layers.append(InvertedResidual(channels, outputs, first if block == 0 else 1, expansion))
                channels = outputs
        layers.append(ConvNormActivation(channels, last, 1))
        self.features = nn.Sequential(*layers)
        classifier = nn.Linear(last, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(dropout), classifier)
        he_init_(self)
        nn.init.normal_(classifier.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


@register(
    "mobilenetv2",
    summary="MobileNetV2, torchvision's names and structure, 3.50M parameters",
    inputs=ImageInput(224, small=32),
    small={"num_classes": 10, "width": 0.25, "last_channels": 64, "stem": "cifar", "dropout": 0.0},
)
def mobilenetv2(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    width: Scale = 1.0,
    last_channels: Count = 1280,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    dropout: Share = 0.2,
) -> nn.Module:
    """Build it; `width` multiplies all channels but the last (`last_channels`, which grows only for width > 1)."""
    last = round_channels(last_channels * max(1.0, width))
    return MobileNetV2(num_classes, in_channels, width, last, dropout, small_images=stem == "cifar")
