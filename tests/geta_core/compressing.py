"""Small networks of every kind, prepared, pruned and finished once per process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from orchestration.models import build_small
from orchestration.models.mobilenetv2 import ConvNormActivation, InvertedResidual
from orchestration.models.resnet_cifar import CifarResNet

MODES: dict[str, dict[str, Any]] = {
    "float": {"weight_bits": None},
    "W": {"weight_bits": (4, 8), "initial_bits": 8},
    "WA": {"weight_bits": (4, 8), "activation_bits": (4, 8), "initial_bits": 8},
    "W per channel": {"weight_bits": (4, 16), "per_channel": True},
}


def mobilenet() -> nn.Module:
    """The blocks of MobileNetV2, four of them: with and without expansion, stride and residual."""
    return nn.Sequential(
        ConvNormActivation(3, 8, 3, 2),
        InvertedResidual(8, 8, 1, 1),
        InvertedResidual(8, 8, 2, 3),
        InvertedResidual(8, 8, 1, 3),
        ConvNormActivation(8, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class Fixed(nn.Module):
    """A net whose forward holds the number of its heads as a literal, so that its own class cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 2, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.qkv = nn.Linear(12, 3 * 16)
        self.drop = nn.Dropout(0.5)
        self.proj = nn.Linear(16, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.drop(torch.relu(self.proj(mixed))).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: CifarResNet(1, 10, 3, 4), (2, 3, 16, 16)),
    "vgg7": (lambda: build_small("vgg7"), (2, 3, 32, 32)),
    "mobilenet": (mobilenet, (2, 3, 16, 16)),
    "vit": (lambda: build_small("vit", depth=1), (2, 3, 16, 16)),
    "encoder": (lambda: build_small("encoder", depth=1), (2, 12)),
    "fixed": (Fixed, (2, 3, 8, 8)),
}


def build(net: str) -> nn.Module:
    """The dense net, always the same: initialised from one seed, with running statistics that are not fresh."""
    torch.manual_seed(3)
    model = NETS[net][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def batch(net: str, size: int = 2) -> Tensor:
    """Inputs of a net; the first rows do not depend on the size."""
    shape = NETS[net][1]
    generator = torch.Generator().manual_seed(4)
    if len(shape) == 2:
        return torch.randint(0, 50, (size, *shape[1:]), generator=generator)
    return torch.randn(size, *shape[1:], generator=generator)


def some_groups(prepared: geta.Prepared, share: float = 0.4, seed: int = 0) -> list[int]:
    """A random share of each family's groups, never all of them."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for family in range(int(prepared.family.max()) + 1 if prepared.num_prunable else 0):
        members = torch.nonzero(prepared.family == family).flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen += shuffled[: min(round(share * len(members)), len(members) - 1)].tolist()
    return chosen


def prepare(net: str, mode: str) -> geta.Prepared:
    """A prepared net with some groups at zero; weight bits differ from layer to layer, and are whole."""
    prepared = geta.prepare(build(net), batch(net), geta.CompressionConfig(**MODES[mode]))
    for position, site in enumerate(prepared.sites):
        low, high = (4, 8) if site.kind == "input" or not prepared.config.per_channel else (4, 12)
        bits = low + (torch.arange(site.quantizer.d.numel()) + position) % (high - low + 1)
        site.quantizer.set_bits_(bits.view(site.quantizer.d.shape).float())
    prepared.zero_(some_groups(prepared))
    return prepared


@cache
def prepared_net(net: str, mode: str) -> geta.Prepared:
    """As :func:`prepare`, once per process: not to be changed."""
    return prepare(net, mode)


@cache
def compressed_net(net: str, mode: str) -> geta.Compressed:
    """The finished net, once per process: not to be changed."""
    return geta.finish(prepared_net(net, mode))
