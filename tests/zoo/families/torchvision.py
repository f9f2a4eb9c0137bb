"""torchvision: every classification family, segmentation, detection up to the suppression of boxes, and video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.family import Family, Kind, images

SMALL_VGG = [8, "M", 12, "M", 16, 16, "M", 24, "M", 24, "M"]


class BeforeSuppression(nn.Module):
    """Backbone and head of a detector: class scores and box offsets of every anchor."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        return self.head([features] if isinstance(features, Tensor) else list(features.values()))


def _alexnet() -> nn.Module:
    from torchvision.models import alexnet

    model = alexnet(num_classes=10)
    model.classifier[1], model.classifier[4] = nn.Linear(9216, 48), nn.Linear(48, 32)
    model.classifier[6] = nn.Linear(32, 10)
    return model


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=10)


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2, 2), 16, num_classes=10)


def _efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    blocks = [FusedMBConvConfig(2, 3, 1, 8, 8, 1), MBConvConfig(3, 3, 2, 8, 16, 2), MBConvConfig(3, 5, 2, 16, 24, 1)]
    return EfficientNet(blocks, dropout=0.0, stochastic_depth_prob=0.0, num_classes=10)


def _googlenet() -> nn.Module:
    from torchvision.models import GoogLeNet

    return GoogLeNet(num_classes=10, aux_logits=False, init_weights=False)


def _inception() -> nn.Module:
    from torchvision.models import Inception3

    return Inception3(num_classes=10, aux_logits=False, init_weights=False)


def _maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit(
        input_size=(32, 32),
        stem_channels=8,
        partition_size=4,
        block_channels=[8, 16],
        block_layers=[1, 1],
        head_dim=4,
        stochastic_depth_prob=0.0,
        num_classes=10,
    )


def _mnasnet() -> nn.Module:
    from torchvision.models import MNASNet

    return MNASNet(0.35, num_classes=10)


def _mobilenet_v2() -> nn.Module:
    from torchvision.models import MobileNetV2

    setting = [[1, 8, 1, 1], [6, 16, 2, 2], [6, 24, 1, 2]]
    return MobileNetV2(num_classes=10, width_mult=0.5, inverted_residual_setting=setting)


def _mobilenet_v3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    rows = [
        (8, 3, 8, 8, True, "RE", 2, 1, 1),
        (8, 3, 24, 16, False, "RE", 2, 1, 1),
        (16, 5, 32, 16, True, "HS", 1, 1, 1),
    ]
    return MobileNetV3([InvertedResidualConfig(*row) for row in rows], 32, num_classes=10)


def _regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams([1, 2], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25), num_classes=10, stem_width=8)


def _resnet() -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=2, width_per_group=8)


def _shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [8, 16, 32, 48, 64], num_classes=10)


def _squeezenet() -> nn.Module:
    from torchvision.models import SqueezeNet

    return SqueezeNet("1_1", num_classes=10)


def _swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=10)


def _vgg() -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    model = VGG(make_layers(SMALL_VGG, batch_norm=True), num_classes=10)
    model.classifier[0], model.classifier[3] = nn.Linear(24 * 49, 48), nn.Linear(48, 32)
    model.classifier[6] = nn.Linear(32, 10)
    return model


def _vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 4, 2, 4, 32, 48, num_classes=10)


def _deeplab() -> nn.Module:
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)


def _fcn() -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    backbone = IntermediateLayerGetter(ResNet(BasicBlock, [1, 1, 1, 1]), {"layer3": "out"})
    return FCN(backbone, FCNHead(256, 5))


def _lraspp() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)


def _pyramid() -> Any:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import BasicBlock, ResNet

    layers = {"layer1": "0", "layer2": "1", "layer3": "2"}
    return BackboneWithFPN(ResNet(BasicBlock, [1, 1, 1, 1]), layers, [64, 128, 256], 32)


def _retinanet() -> nn.Module:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0),) * 4)
    return BeforeSuppression(RetinaNet(_pyramid(), 4, anchor_generator=anchors))


def _fcos() -> nn.Module:
    from torchvision.models.detection import FCOS

    return BeforeSuppression(FCOS(_pyramid(), 4))


def _ssd() -> nn.Module:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    return BeforeSuppression(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4))


def _video_resnet() -> nn.Module:
    from torchvision.models.video.resnet import BasicBlock, Conv3DSimple, R2Plus1dStem, VideoResNet

    model = VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], R2Plus1dStem, num_classes=10)
    return nn.Sequential(model.stem, model.layer1, model.layer2, model.avgpool, nn.Flatten(), nn.Linear(128, 10))


def _video_transformer() -> nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    blocks = [
        MSBlockConfig(2, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return MViT(
        (32, 32),
        4,
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=10,
    )


def _clips(batch: int, length: int | None) -> Tensor:
    return torch.randn(batch, 3, 4, 32, 32)


MODELS: dict[str, tuple[Callable[[], nn.Module], Kind, int]] = {
    "alexnet": (_alexnet, "cnn", 64),
    "convnext": (_convnext, "cnn", 32),
    "deeplabv3": (_deeplab, "cnn", 64),
    "densenet": (_densenet, "cnn", 32),
    "efficientnet": (_efficientnet, "cnn", 32),
    "fcn": (_fcn, "cnn", 64),
    "fcos": (_fcos, "cnn", 64),
    "googlenet": (_googlenet, "cnn", 64),
    "inception": (_inception, "cnn", 80),
    "lraspp": (_lraspp, "cnn", 64),
    "maxvit": (_maxvit, "transformer", 32),
    "mnasnet": (_mnasnet, "cnn", 64),
    "mobilenetv2": (_mobilenet_v2, "cnn", 32),
    "mobilenetv3": (_mobilenet_v3, "cnn", 32),
    "regnet": (_regnet, "cnn", 32),
    "resnet": (_resnet, "cnn", 32),
    "retinanet": (_retinanet, "cnn", 64),
    "shufflenetv2": (_shufflenet, "cnn", 64),
    "squeezenet": (_squeezenet, "cnn", 64),
    "ssdlite": (_ssd, "cnn", 64),
    "swin_transformer": (_swin, "transformer", 32),
    "vgg": (_vgg, "cnn", 32),
    "vision_transformer": (_vision_transformer, "transformer", 16),
}


def families() -> Iterator[Family]:
    """Every family of torchvision that the zoo holds."""
    for name, (build, kind, side) in MODELS.items():
        yield Family(f"torchvision/{name}", build, images(side), kind, ("torchvision",))
    yield Family("torchvision/video.resnet", _video_resnet, _clips, "cnn", ("torchvision",))
    yield Family("torchvision/video.mvit", _video_transformer, _clips, "transformer", ("torchvision",))
