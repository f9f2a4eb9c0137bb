"""ResNets with group normalisation in place of batch normalisation (Wu and He, arXiv:1803.08494).

32 groups in every norm, as in the paper. Differs: the last norm of a block starts at scale 1, not 0, as in the
batch-normalised nets of this folder.
"""

from __future__ import annotations

from torch import nn

from orchestration.models.common import require
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register
from orchestration.models.resnet import BasicBlock, Bottleneck, Parts, ResNet, Stem, checked_shape


def _parts(model: str, groups: int, width: int) -> Parts:
    # Every norm of the net is over width times a power of two, so the first one decides.
    require(model, groups=(width % groups == 0, f"must divide the width, got {groups} groups and width {width}"))
    return Parts(norm=lambda channels: nn.GroupNorm(groups, channels))


@register(
    "resnet18_gn",
    summary="ResNet18 with GroupNorm, 11.69M parameters",
    inputs=ImageInput(224, small=32),
    small={"num_classes": 10, "width": 8, "layers": (1, 2, 1, 1), "groups": 4, "stem": "cifar"},
)
def resnet18_gn(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    width: Count = 64,
    layers: tuple[Count, ...] = (2, 2, 2, 2),
    stem: Stem = "imagenet",
    groups: Count = 32,
) -> nn.Module:
    """Build it; each norm has `groups` groups of channels."""
    shape = checked_shape("resnet18_gn", layers, width, stem)
    return ResNet(BasicBlock, shape, num_classes, in_channels, _parts("resnet18_gn", groups, width))


@register(
    "resnet50_gn",
    summary="ResNet50 with GroupNorm, 25.56M parameters",
    inputs=ImageInput(224, small=32),
    small={"num_classes": 10, "width": 8, "layers": (1, 2, 1, 1), "groups": 4, "stem": "cifar"},
)
def resnet50_gn(
    *,
    num_classes: Count = 1000,
    in_channels: Count = 3,
    width: Count = 64,
    layers: tuple[Count, ...] = (3, 4, 6, 3),
    stem: Stem = "imagenet",
    groups: Count = 32,
) -> nn.Module:
    """Build it; each norm has `groups` groups of channels."""
    shape = checked_shape("resnet50_gn", layers, width, stem)
    return ResNet(Bottleneck, shape, num_classes, in_channels, _parts("resnet50_gn", groups, width))
