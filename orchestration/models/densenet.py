"""DenseNet (Huang et al., arXiv:1608.06993): each layer reads the concatenation of all outputs before it.

`densenet121` has the names and the structure of torchvision; `densenet_bc` is the paper's DenseNet-BC
for CIFAR: three blocks, no pooling in the stem, depth 6 n + 4, compression 0.5. Differs: no dropout.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from orchestration.models.common import he_init_, require
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register


class DenseLayer(nn.Module):
    """Norm, relu, 1x1, norm, relu, 3x3: [B, C, H, W] to [B, growth, H, W]."""

    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new channels only."""
        x = self.conv1(self.relu1(self.norm1(x)))
        out: Tensor = self.conv2(self.relu2(self.norm2(x)))
        return out


class DenseBlock(nn.Module):
    """`layers` dense layers: [B, C, H, W] to [B, C + layers growth, H, W]."""

    def __init__(self, layers: int, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"denselayer{index + 1}", DenseLayer(inputs + index * growth, growth, bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and all new channels, concatenated."""
        features = [x]
        for layer in self.children():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Images [B, C, H, W] to logits [B, num_classes].

    Args:
        blocks: layers per dense block; between two blocks the channels and the side are halved.
        growth: channels that each layer adds.
        stem: the layers before the first block, by name.
        channels: what the stem hands on.
        num_classes: logits.
    """

    def __init__(
        self, blocks: tuple[int, ...], growth: int, stem: OrderedDict[str, nn.Module], channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(stem)
        for index, layers in enumerate(blocks, start=1):
            self.features.add_module(f"denseblock{index}", DenseBlock(layers, channels, growth, bottleneck=4))
            channels += layers * growth
            if index < len(blocks):
                self.features.add_module(f"transition{index}", _transition(channels, channels // 2))
                channels //= 2
        self.features.add_module(f"norm{len(blocks) + 1}", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu(self.features(x))
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def _transition(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=nn.BatchNorm2d(inputs),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(inputs, outputs, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


@register(
    "densenet121",
    summary="DenseNet121, torchvision's names and structure, 7.98M parameters",
    inputs=ImageInput(224, small=64),
    small={"num_classes": 10, "growth": 4, "blocks": (1, 2, 2, 1), "stem_channels": 8},
)
def densenet121(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    growth: Count = 32,
    blocks: tuple[Count, ...] = (6, 12, 24, 16),
    stem_channels: Count = 64,
) -> nn.Module:
    """Build it; `growth` channels per layer, `blocks` layers per dense block."""
    require("densenet121", blocks=(len(blocks) > 0, "needs at least one block"))
    stem = OrderedDict[str, nn.Module](
        conv0=nn.Conv2d(in_channels, stem_channels, 7, stride=2, padding=3, bias=False),
        norm0=nn.BatchNorm2d(stem_channels),
        relu0=nn.ReLU(inplace=True),
        pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )
    return DenseNet(blocks, growth, stem, stem_channels, num_classes)


@register(
    "densenet_bc",
    summary="DenseNet-BC for CIFAR; depth 100 has 0.77M parameters",
    inputs=ImageInput(32),
    small={"depth": 16, "growth": 4},
)
def densenet_bc(*, num_classes: Count = 10, in_channels: Count = 3, depth: Count = 40, growth: Count = 12) -> nn.Module:
    """Build it; `depth` is 6 n + 4 for n layers per block, the stem has 2 `growth` channels."""
    require("densenet_bc", depth=(depth > 4 and depth % 6 == 4, f"must be 6 n + 4 with n >= 1, got {depth}"))
    stem = OrderedDict[str, nn.Module](conv0=nn.Conv2d(in_channels, 2 * growth, 3, padding=1, bias=False))
    return DenseNet((depth // 6,) * 3, growth, stem, 2 * growth, num_classes)
