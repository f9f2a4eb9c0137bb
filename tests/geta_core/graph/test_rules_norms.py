"""Normalizations, reductions, pooling, resizing, embedding and indexing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geta_core as geta
from tests.geta_core.graph.nets import (
    Body,
    Net,
    assert_sound,
    choose,
    double,
    gap,
    image,
    image_net,
    parameter,
    pinned,
    prepared64,
    prunable,
    run,
    token_net,
    tokens,
)


class FixedNorm(nn.Module):
    """Batch norm of running statistics that has a weight but no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = parameter(6)
        self.register_buffer("mean", torch.rand(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight)  # type: ignore[arg-type]


NORMS: dict[str, tuple[nn.Module, int]] = {
    # How many of the six channels (or blocks of them) may go.
    "batch norm": (nn.BatchNorm2d(6), 6),
    "batch norm without affine": (nn.BatchNorm2d(6, affine=False), 6),
    "batch norm without bias": (FixedNorm(), 6),
    "batch norm of the batch": (nn.BatchNorm2d(6, track_running_stats=False), 6),
    "instance norm": (nn.InstanceNorm2d(6), 6),
    "instance norm, affine": (nn.InstanceNorm2d(6, affine=True), 6),
    "instance norm, running": (nn.InstanceNorm2d(6, affine=True, track_running_stats=True), 6),
    "group norm": (nn.GroupNorm(3, 6), 3),
    "group norm without affine": (nn.GroupNorm(3, 6, affine=False), 3),
    "group norm per channel": (nn.GroupNorm(6, 6), 6),
    "group norm of all": (nn.GroupNorm(1, 6), 0),
    "layer norm of pixels": (nn.LayerNorm([8, 8], elementwise_affine=False), 6),
    "layer norm of pixels, affine": (nn.LayerNorm([8, 8]), 6),
    "layer norm of all": (nn.LayerNorm([6, 8, 8]), 0),
    "local response norm": (nn.LocalResponseNorm(3), 0),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match")
def test_norms_of_images(name: str) -> None:
    norm, expected = NORMS[name]
    prepared = prepared64(image_net(lambda net, y: net.norm(y).relu(), norm=norm), image())
    assert len(prunable(prepared, "stem.weight")) == expected
    assert_sound(prepared, image())


def test_batch_norm_needs_weight_and_bias_at_zero() -> None:
    """A zero channel leaves batch norm as bias - mean / std * weight, whatever the convolution before it does."""
    prepared = prepared64(image_net(lambda net, y: net.norm(y).relu(), norm=nn.BatchNorm2d(6)), image())
    (group, *_) = prunable(prepared, "stem.weight")
    assert {(m.name, m.role) for m in group.members} == {
        ("stem.weight", "PRODUCE"),
        ("stem.bias", "PRODUCE"),
        ("norm.weight", "PRODUCE"),
        ("norm.bias", "PRODUCE"),
        ("norm.running_mean", "BUFFER"),
        ("norm.running_var", "BUFFER"),
        ("last.weight", "CONSUME"),
    }
    net = image_net(lambda net, y: F.gelu(net.norm(y)), norm=nn.BatchNorm2d(6, affine=False))
    prepared = prepared64(net, image())
    (group, *_) = prunable(prepared, "stem.weight")
    assert ("last.weight", "PRODUCE") in {(m.name, m.role) for m in group.members}
    assert_sound(prepared, image())


def test_own_scale_and_shift_after_a_plain_batch_norm() -> None:
    parts = {"norm": nn.BatchNorm2d(6, affine=False), "g": parameter(6, 1, 1), "b": parameter(6, 1, 1)}
    prepared = prepared64(image_net(lambda net, y: (net.norm(y) * net.g + net.b).relu(), **parts), image())
    assert len(prunable(prepared, "stem.weight")) == 6
    assert_sound(prepared, image())


def rms(net: Any, y: Tensor) -> Tensor:
    return net.g * y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)


def layer_norm_by_hand(net: Any, y: Tensor) -> Tensor:
    z = y - y.mean(-1, keepdim=True)
    return net.g * z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)


FEATURES: dict[str, tuple[Body, str]] = {
    "layer norm": (lambda net, y: net.layer(y), "enters a LayerNorm or RMSNorm reduction"),
    "layer norm by hand": (layer_norm_by_hand, "enters a reduction (aten.mean.dim)"),
    "RMS norm": (lambda net, y: net.rms(y + net.mix(y)), "enters a LayerNorm or RMSNorm reduction"),
    "RMS norm by hand": (lambda net, y: rms(net, y + net.mix(y)), "enters a reduction (aten.mean.dim)"),
    "softmax": (lambda net, y: y.softmax(-1), "enters a softmax"),
    "mean of what is not zero": (lambda net, y: y * y.sigmoid().mean(-1, keepdim=True), "enters a reduction"),
    "maximum": (lambda net, y: y * y.amax(-1, keepdim=True), "enters a reduction"),
    "variance": (lambda net, y: y / (1 + y.var(-1, keepdim=True)), "enters a reduction"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_reductions_over_the_features_pin_them(name: str) -> None:
    body, why = FEATURES[name]
    net = token_net(body, layer=nn.LayerNorm(6), rms=nn.RMSNorm(6), mix=nn.Linear(6, 6), g=parameter(6))
    prepared = prepared64(net, tokens())
    groups = pinned(prepared, "stem.weight")
    assert len(groups) == 6
    assert all(str(group.pinned).startswith(why) for group in groups)


@pytest.mark.parametrize("name", ["layer norm", "layer norm by hand", "RMS norm", "RMS norm by hand"])
def test_removal_through_a_norm_is_inexact_and_says_so(name: str) -> None:
    """The pin is needed: opted out of, the same groups go and the result changes, which the report flags."""
    net = token_net(FEATURES[name][0], layer=nn.LayerNorm(6), rms=nn.RMSNorm(6), mix=nn.Linear(6, 6), g=parameter(6))
    prepared = prepared64(net, tokens(), prune_normalized=True)
    groups = prunable(prepared, "stem.weight")
    assert len(groups) == 6
    assert all(group.inexact for group in groups)
    prepared.zero_(choose(prepared, 0))
    compressed = geta.finish(prepared)
    assert compressed.report.inexact >= 1
    assert gap(run(prepared.model, double(tokens())), run(compressed.model, double(tokens()))) > 1e-3
    assert compressed.report.max_error64 > 1e-3, "the report does not hide it"


def test_without_removal_an_opted_in_net_stays_exact() -> None:
    net = token_net(lambda net, y: net.norm(net.mlp(y)), mlp=nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)))
    net.norm = nn.LayerNorm(6)
    prepared = prepared64(net, tokens(), prune_normalized=True)
    hidden = [group for group in prunable(prepared, "mlp.0.weight") if not group.inexact]
    assert len(hidden) == 9
    prepared.zero_(hidden[:4])
    report = geta.finish(prepared).report
    assert report.inexact == 0
    assert report.max_error64 <= 1e-10


REDUCTIONS: dict[str, tuple[Body, int]] = {
    "sum over channels": (lambda net, y: y * y.sum(1, keepdim=True), 6),
    "sum over all": (lambda net, y: y * y.sum(), 6),
    "sum without its dimension": (lambda net, y: y * y.sum(1).unsqueeze(1), 6),
    "sum over pixels": (lambda net, y: y * y.sum((2, 3))[:, :, None, None], 6),
    "norm over channels": (lambda net, y: y * torch.linalg.vector_norm(y, 2, dim=1, keepdim=True), 6),
    "norm without its dimension": (lambda net, y: y * torch.linalg.vector_norm(y, 1, dim=1).unsqueeze(1), 6),
    "norm of all": (lambda net, y: y * y.norm(), 6),
    "largest over channels": (lambda net, y: y * torch.linalg.vector_norm(y, float("inf"), dim=1, keepdim=True), 6),
    "smallest over channels": (lambda net, y: y * torch.linalg.vector_norm(y, -float("inf"), dim=1, keepdim=True), 0),
    "norm over pixels": (lambda net, y: y * y.norm(dim=(2, 3), keepdim=True), 6),
    "mean over channels": (lambda net, y: y * y.mean(1, keepdim=True), 6),
    "mean over all": (lambda net, y: y * y.mean(), 6),
    "mean over pixels": (lambda net, y: y * y.mean((-1, -2), keepdim=True), 6),
    "deviation over pixels": (lambda net, y: y * y.std((2, 3), keepdim=True), 6),
    "maximum over pixels": (lambda net, y: y * y.max(3, keepdim=True)[0], 6),
    "maximum over channels": (lambda net, y: y * y.max(1, keepdim=True)[0], 0),
    "maximum of two": (lambda net, y: torch.max(y, net.b(y)), 6),
    "minimum of two": (lambda net, y: torch.min(y, net.b(y)), 6),
    "softmax over pixels": (lambda net, y: y * y.flatten(2).softmax(-1).view(y.shape), 6),
    "softmax over channels": (lambda net, y: y * y.softmax(1), 0),
    "attention over channels": (
        lambda net, y: ((y.flatten(2) @ y.flatten(2).mT).softmax(-1) @ y.flatten(2)).view(y.shape),
        0,
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    body, expected = REDUCTIONS[name]
    prepared = prepared64(image_net(body, b=nn.Conv2d(6, 6, 1)), image())
    assert len(prunable(prepared, "stem.weight")) == expected
    assert_sound(prepared, image())


def test_a_summed_channel_has_to_be_zero() -> None:
    for body, expected in ((F.gelu, 6), (torch.sigmoid, 0)):
        net = image_net(lambda net, y, body=body: body(y).sum(1, keepdim=True), out=1)  # type: ignore[misc]
        assert len(prunable(prepared64(net, image()), "stem.weight")) == expected


def test_squeeze_and_excitation() -> None:
    """The channel goes with the row of the gate that scales it; the squeezed units go by themselves."""

    def body(net: Any, y: Tensor) -> Tensor:
        y = net.norm(y).relu()
        gate = torch.sigmoid(net.up(net.down(y.mean((2, 3), keepdim=True)).relu()))
        return y * gate

    parts = {"norm": nn.BatchNorm2d(8), "down": nn.Conv2d(8, 4, 1), "up": nn.Conv2d(4, 8, 1)}
    prepared = prepared64(image_net(body, width=8, **parts), image())
    groups = prunable(prepared, "stem.weight")
    assert len(groups) == 8
    assert groups == prunable(prepared, "up.weight") == prunable(prepared, "down.weight", 1)
    assert len(prunable(prepared, "down.weight")) == 4
    assert_sound(prepared, image())


POOLING = {
    "maximum": lambda y: F.max_pool2d(y, 2),
    "average": lambda y: F.avg_pool2d(y, 2),
    "adaptive average": lambda y: F.adaptive_avg_pool2d(y, 3),
    "adaptive maximum": lambda y: F.adaptive_max_pool2d(y, 3),
    "power": lambda y: F.lp_pool2d(y.relu(), 2, 2),
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "bilinear": lambda y: F.interpolate(y, size=(5, 7), mode="bilinear"),
    "bicubic": lambda y: F.interpolate(y, scale_factor=2, mode="bicubic", align_corners=True),
    "area": lambda y: F.interpolate(y, size=(4, 5), mode="area"),
    "in one dimension": lambda y: F.avg_pool1d(F.max_pool1d(y.flatten(2), 2), 2).unsqueeze(3),
    "in three dimensions": lambda y: F.avg_pool3d(F.max_pool3d(y[:, :, None], (1, 2, 2)), (1, 2, 2)).squeeze(2),
    "trilinear": lambda y: F.interpolate(y[:, :, None], scale_factor=(1, 2, 2), mode="trilinear").squeeze(2),
    "linear": lambda y: F.interpolate(y.flatten(2), scale_factor=0.5, mode="linear").unsqueeze(3),
}


@pytest.mark.parametrize("name", POOLING)
def test_pooling_and_resizing(name: str) -> None:
    prepared = prepared64(image_net(lambda net, y: POOLING[name](y)), image())
    assert len(prunable(prepared, "stem.weight")) == 6
    assert_sound(prepared, image())


def test_embedding() -> None:
    """Features go, entries of the vocabulary stay; so do rows that an index tensor looks up."""

    def body(net: Any, index: Tensor) -> Tensor:
        places = net.places[torch.arange(index.shape[1]) // 2]
        return net.head(F.gelu(net.words(index) + places) * net.table[:, index].movedim(0, -1))

    net = Net(body, words=nn.Embedding(11, 6), places=parameter(4, 6), table=parameter(6, 11), head=nn.Linear(6, 5))
    index = torch.randint(11, (2, 7))
    prepared = prepared64(net, index)
    (group, *rest) = prunable(prepared, "words.weight", 1)
    assert len(rest) == 5
    assert {(m.name, m.dim, m.role) for m in group.members} == {
        ("words.weight", 1, "PRODUCE"),
        ("places", 1, "PRODUCE"),
        ("table", 0, "PRODUCE"),
        ("head.weight", 1, "CONSUME"),
    }
    for name, dim in (("words.weight", 0), ("places", 0), ("table", 1)):
        assert not prunable(prepared, name, dim)
    assert_sound(prepared, index)
