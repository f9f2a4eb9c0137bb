"""Squeeze-and-excitation ResNets (Hu et al., arXiv:1709.01507).

The gate sits behind the last norm of a block's branch, before the addition, as in the paper. Differs: the two fully
connected layers of the gate are 1x1 convolutions on the pooled map, which is the same arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register
from orchestration.models.resnet import BasicBlock, Bottleneck, Parts, ResNet, Stem, checked_shape


class SqueezeExcite(nn.Module):
    """Scale each channel of [B, C, H, W] by a number in (0, 1) computed from the channels' means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled map."""
        gate = x.mean((2, 3), keepdim=True)
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(gate))))
        return x * gate


def _parts(reduction: int) -> Parts:
    return Parts(gate=lambda channels: SqueezeExcite(channels, reduction))


@register(
    "seresnet18",
    summary="squeeze-excite ResNet18, 11.78M parameters",
    inputs=ImageInput(224, small=32),
    small={"num_classes": 10, "width": 8, "layers": (1, 2, 1, 1), "reduction": 4, "stem": "cifar"},
)
def seresnet18(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    width: Count = 64,
    layers: tuple[Count, ...] = (2, 2, 2, 2),
    stem: Stem = "imagenet",
    reduction: Count = 16,
) -> nn.Module:
    """Build it; the gate's hidden layer has channels / `reduction` units."""
    shape = checked_shape("seresnet18", layers, width, stem)
    return ResNet(BasicBlock, shape, num_classes, in_channels, _parts(reduction))


@register(
    "seresnet50",
    summary="squeeze-excite ResNet50, 28.09M parameters",
    inputs=ImageInput(224, small=32),
    small={"num_classes": 10, "width": 8, "layers": (1, 2, 1, 1), "reduction": 8, "stem": "cifar"},
)
def seresnet50(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    width: Count = 64,
    layers: tuple[Count, ...] = (3, 4, 6, 3),
    stem: Stem = "imagenet",
    reduction: Count = 16,
) -> nn.Module:
    """Build it; the gate's hidden layer has channels / `reduction` units."""
    shape = checked_shape("seresnet50", layers, width, stem)
    return ResNet(Bottleneck, shape, num_classes, in_channels, _parts(reduction))
