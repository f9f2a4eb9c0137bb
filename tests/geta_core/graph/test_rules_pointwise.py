"""Element-wise operations: where one keeps a channel's zeros, what reads it is only cut, else it is zeroed as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geta_core.graph import Group
from tests.geta_core.graph.nets import (
    assert_sound,
    image,
    image_net,
    parameter,
    pinned,
    prepared64,
    prunable,
)

Unary = Callable[[Tensor], Tensor]

KEEPS_ZERO: dict[str, Unary] = {
    "relu": F.relu,
    "relu in place": lambda y: y.relu_(),
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "tanh": torch.tanh,
    "elu": F.elu,
    "leaky relu": F.leaky_relu,
    "softsign": F.softsign,
    "softshrink": F.softshrink,
    "abs": torch.abs,
    "square": lambda y: y**2,
    "root": lambda y: (y * y).sqrt(),
    "sin": torch.sin,
    "log1p": lambda y: y.abs().log1p(),
    "clamp": lambda y: y.clamp(-1, 1),
    "threshold below": lambda y: F.threshold(y, -0.1, 20.0),
    "scaled": lambda y: 3 * y / 7,
    "negated": lambda y: -y,
    "rounded": torch.round,
    "straight-through": lambda y: y + (y.round() - y).detach(),
    "masked by sign": lambda y: y * (y > 0),
    "where": lambda y: torch.where(y > 0.3, y, 0.1 * y),
    "where 0": lambda y: torch.where(y > 0.3, y, 0.0),
    "masked fill": lambda y: y.masked_fill(y > 0.5, 0.0),
    "nan to number": torch.nan_to_num,
    "sum with itself": lambda y: y + y,
    "in-place sum": lambda y: y.mul_(2).add_(y),
    "times itself": lambda y: y * y.sigmoid(),
    "weighted sum": lambda y: torch.addcmul(y, y, y, value=2.0),
    "interpolated": lambda y: torch.lerp(y, 2 * y, y.sigmoid()),
    "maximum": lambda y: torch.maximum(y, 0.5 * y),
    "quotient": lambda y: y / (1 + y.abs()),
    "dropout": lambda y: F.dropout(y, 0.0, True),
    "cast": lambda y: y.to(torch.float32).to(y.dtype),
    "clone": lambda y: y.clone().contiguous(),
}

LOSES_ZERO: dict[str, Unary] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "cos": torch.cos,
    "shifted": lambda y: y + 1,
    "subtracted": lambda y: 1 - y,
    "clamp from 1": lambda y: y.clamp(min=1),
    "threshold above": lambda y: F.threshold(y, 0.1, 20.0),
    "power 0": lambda y: y**0,
    "where 1": lambda y: torch.where(y > 0.3, y, 1.0),
    "fills zeros": lambda y: y.masked_fill(y == 0, 1.0),
    "compared with 0": lambda y: (y > -1).to(y.dtype),
    "quotient of gates": lambda y: torch.sigmoid(y) / (1 + y.abs()),
}


@pytest.mark.parametrize("name", KEEPS_ZERO)
def test_channels_may_go(name: str) -> None:
    prepared = prepared64(image_net(lambda net, y: KEEPS_ZERO[name](y)), image())
    groups = prunable(prepared, "stem.weight")
    assert len(groups) == 6
    assert {role(group, "last.weight") for group in groups} == {"CONSUME"}
    assert_sound(prepared, image())


@pytest.mark.parametrize("name", LOSES_ZERO)
def test_channels_are_zeroed_where_they_are_read_too(name: str) -> None:
    """What becomes of a zero channel is removed with the columns that read it, which are zero then."""
    prepared = prepared64(image_net(lambda net, y: LOSES_ZERO[name](y)), image())
    groups = prunable(prepared, "stem.weight")
    assert len(groups) == 6
    assert {role(group, "last.weight") for group in groups} == {"PRODUCE"}
    assert_sound(prepared, image())


@pytest.mark.parametrize("name", LOSES_ZERO)
def test_channels_must_stay_where_nothing_that_reads_them_can_be_zeroed(name: str) -> None:
    """A sum over the channels has no parameter of its own."""
    body: Unary = LOSES_ZERO[name]
    prepared = prepared64(image_net(lambda net, y: body(y).sum(1, keepdim=True), out=1), image())
    groups = pinned(prepared, "stem.weight")
    assert len(groups) == 6
    assert {str(group.pinned).partition(", at ")[0] for group in groups} == {"is not exactly zero where it is consumed"}


UNBOUNDED: dict[str, Unary] = {
    "logarithm": lambda y: y.abs().log(),
    "reciprocal": lambda y: 1 / y,
    "root of the reciprocal": lambda y: (y * y).rsqrt(),
    "quotient of itself": lambda y: y / y.abs(),
    "negative power": lambda y: y.abs() ** -0.5,
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_is_not_finite_at_zero_is_no_number_times_zero(name: str) -> None:
    prepared = prepared64(image_net(lambda net, y: UNBOUNDED[name](y)), image())
    assert len(pinned(prepared, "stem.weight")) == 6


def role(group: Group, name: str) -> str:
    return next(member.role for member in group.members if member.name == name)


PARTS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor], dict[str, Callable[[], nn.Module | Tensor]]]] = {
    "layer scale": ("CONSUME", lambda net, y: net.g * y, {"g": lambda: parameter(6, 1, 1)}),
    "added parameter": ("CONSUME", lambda net, y: y + net.g, {"g": lambda: parameter(1, 6, 1, 1)}),
    "parameter in the shape of y": (
        "CONSUME",
        lambda net, y: y + net.g.expand_as(y),
        {"g": lambda: parameter(1, 6, 1, 1)},
    ),
    "buffer times": ("CONSUME", lambda net, y: y * net.g, {"g": lambda: torch.rand(6, 1, 1)}),
    "buffer added": ("PRODUCE", lambda net, y: y + net.g, {"g": lambda: torch.rand(6, 1, 1)}),
    "scalar parameter times": ("CONSUME", lambda net, y: y * net.g, {"g": lambda: parameter(1)}),
    "scalar parameter added": ("PRODUCE", lambda net, y: y + net.g, {"g": lambda: parameter(1)}),
    "per-pixel parameter added": ("PRODUCE", lambda net, y: y + net.g, {"g": lambda: parameter(8, 8)}),
    "gate": ("CONSUME", lambda net, y: y * torch.sigmoid(net.b(y)), {"b": lambda: nn.Conv2d(6, 6, 1)}),
    "gate of one channel": ("CONSUME", lambda net, y: y * torch.sigmoid(net.b(y)), {"b": lambda: nn.Conv2d(6, 1, 1)}),
    "sum of two": ("CONSUME", lambda net, y: y + net.b(y), {"b": lambda: nn.Conv2d(6, 6, 1)}),
    "sum with one channel": ("PRODUCE", lambda net, y: y + net.b(y), {"b": lambda: nn.Conv2d(6, 1, 1)}),
    "prelu": ("CONSUME", lambda net, y: net.act(y), {"act": lambda: nn.PReLU()}),
    "prelu per channel": ("CONSUME", lambda net, y: net.act(y), {"act": lambda: nn.PReLU(6)}),
}


@pytest.mark.parametrize("name", PARTS)
def test_several_operands(name: str) -> None:
    """What reads the channels is cut where they are zero, and zeroed with them where something is left."""
    expected, body, parts = PARTS[name]
    prepared = prepared64(image_net(body, **{key: make() for key, make in parts.items()}), image())
    groups = prunable(prepared, "stem.weight")
    assert len(groups) == 6
    assert {role(group, "last.weight") for group in groups} == {expected}
    assert_sound(prepared, image())


def test_a_gate_that_is_not_zero_does_not_make_its_product_live() -> None:
    """sigmoid(0) = 1/2: the gate's own branch stays live, the gated product is zero because its other factor is."""
    parts = {"b": nn.Conv2d(6, 6, 1), "c": nn.Conv2d(6, 3, 1)}
    prepared = prepared64(image_net(lambda net, y: y * torch.sigmoid(net.b(y)), **parts), image())
    assert len(prunable(prepared, "b.weight")) == 6
    prepared = prepared64(image_net(lambda net, y: net.c(torch.sigmoid(net.b(y))), out=3, **parts), image())
    assert {role(group, "c.weight") for group in prunable(prepared, "b.weight")} == {"PRODUCE"}
    assert len(prunable(prepared, "stem.weight")) == 6


def test_a_masked_product_of_weights() -> None:
    """Weights made of two parameters and a mask: rows go with both factors, the mask is only cut."""

    def body(net: Any, y: Tensor) -> Tensor:
        return F.conv2d(y, net.w * net.scale * net.mask, padding=1).relu()

    parts = {
        "w": parameter(5, 6, 3, 3),
        "scale": parameter(5, 1, 1, 1),
        "mask": (torch.rand(5, 6, 3, 3) > 0.3).double(),
    }
    prepared = prepared64(image_net(body, out=5, **parts), image())
    (group, *_) = prunable(prepared, "w")
    assert {(m.name, m.dim, m.role) for m in group.members} == {
        ("w", 0, "PRODUCE"),
        ("scale", 0, "PRODUCE"),
        ("mask", 0, "BUFFER"),
        ("last.weight", 1, "CONSUME"),
    }
    assert_sound(prepared, image())
