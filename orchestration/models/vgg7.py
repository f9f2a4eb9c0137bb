"""VGG7 for CIFAR-10 as GETA and DJPQ use it (arXiv:2502.16638 table 4; arXiv:2007.10463).

Convolutions 128, 128, M, 256, 256, M, 512, 512, M, each with batch normalisation and relu, global average pooling,
then linear layers 512 - 1024 - classes. Differs: the convolutions have no bias, which the batch normalisation
behind each of them would absorb. 5,113,738 parameters at the defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestration.models.common import he_init_
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register


class VGG7(nn.Module):
    """Images [B, C, H, W], H and W at least 8, to logits [B, num_classes]."""

    def __init__(self, num_classes: int, in_channels: int, width: int, hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [
                    nn.Conv2d(channels, stage, 3, padding=1, bias=False),
                    nn.BatchNorm2d(stage),
                    nn.ReLU(inplace=True),
                ]
                channels = stage
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes)
        )
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


@register(
    "vgg7",
    summary="VGG7 with batch normalisation for CIFAR (GETA, DJPQ)",
    inputs=ImageInput(32),
    small={"width": 8, "hidden": 24},
)
def vgg7(*, num_classes: Count = 10, in_channels: Count = 3, width: Count = 128, hidden: Count = 1024) -> nn.Module:
    """Build it; `width` channels in the first stage, `hidden` units in the classifier."""
    return VGG7(num_classes, in_channels, width, hidden)
