"""Networks of every make that might break the analysis: each is pruned at random and proved by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.geta_core.graph.nets import (
    Net,
    assert_sound,
    image,
    image_net,
    parameter,
    pinned,
    prepared64,
    prunable,
    token_net,
    tokens,
)


def norm_conv(into: int, out: int, kernel: int = 3, **rest: Any) -> nn.Sequential:
    conv = nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False, **rest)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def resnext(net: Any, y: Tensor) -> Tensor:
    y = y.relu()
    inner = net.two(net.one(y).relu()).relu()
    return (y + net.three(inner)).relu()


def inverted_residual(net: Any, y: Tensor) -> Tensor:
    wide = F.hardswish(net.two(F.hardswish(net.one(y))))
    gate = F.hardsigmoid(net.up(net.down(wide.mean((2, 3), keepdim=True)).relu()))
    return y + net.three(wide * gate)


def dense_block(net: Any, y: Tensor) -> Tensor:
    found = [y]
    for layer in net.layers:
        found.append(layer(torch.cat(found, 1)))
    return torch.cat(found, 1)


def dense_layer(into: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(into), nn.ReLU(), nn.Conv2d(into, 4, 3, padding=1, bias=False))


def shuffle_stage(net: Any, y: Tensor) -> Tensor:
    y = y.relu()
    for branch in (net.one, net.two):
        kept, changed = y.chunk(2, 1)
        y = F.channel_shuffle(torch.cat([kept, branch(changed).relu()], 1), 2)
    return y


def shuffle_by_hand(net: Any, y: Tensor) -> Tensor:
    kept, changed = y.relu().chunk(2, 1)
    y = torch.cat([kept, net.one(changed).relu()], 1)
    return y.view(y.shape[0], 2, -1, 8, 8).transpose(1, 2).flatten(1, 2)


def res2net(net: Any, y: Tensor) -> Tensor:
    a, b, c = y.relu().chunk(3, 1)
    b = net.one(b).relu()
    return torch.cat([a, b, net.two(c + b).relu()], 1)


def spatial_attention(net: Any, y: Tensor) -> Tensor:
    y = y.relu()
    found = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
    return y * torch.sigmoid(net.one(found))


def channel_attention_1d(net: Any, y: Tensor) -> Tensor:
    y = y.relu()
    return y * torch.sigmoid(net.one(y.mean((2, 3)).unsqueeze(1)).squeeze(1))[:, :, None, None]


def film(net: Any, y: Tensor) -> Tensor:
    scale, shift = net.one(y.mean((2, 3))).chunk(2, 1)
    return y.relu() * scale[:, :, None, None] + shift[:, :, None, None]


def experts(net: Any, y: Tensor) -> Tensor:
    weights = net.gate(y.mean((2, 3))).softmax(-1)
    return torch.einsum("nk,nkchw->nchw", weights, torch.stack([net.one(y), net.two(y)], 1)).relu()


def weight_standardized(net: Any, y: Tensor) -> Tensor:
    w = net.one.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return F.conv2d(y.relu(), w, net.one.bias, padding=1).relu()


def reparametrised(net: Any, y: Tensor) -> Tensor:
    return (net.one(y) + net.two(y) + net.three(y)).relu()


def u_net(net: Any, y: Tensor) -> Tensor:
    y = y.relu()
    low = net.one(F.max_pool2d(y, 2)).relu()
    up = net.up(low).relu()[:, :, :7, 1:]
    return net.two(torch.cat([y[:, :, : up.shape[2], : up.shape[3]], up], 1)).relu()


def non_local(net: Any, y: Tensor) -> Tensor:
    flat = y.relu().flatten(2)
    return (flat @ (flat.transpose(1, 2) @ flat).softmax(-1)).view(y.shape)


def mixture(net: Any, y: Tensor) -> Tensor:
    mean, log_var = y.chunk(2, 1)
    return mean + torch.exp(0.5 * log_var) * 0.3


def permuted(net: Any, y: Tensor) -> Tensor:
    return y.relu() + net.one(y.relu())[:, torch.tensor([1, 0, 3, 2, 5, 4])]


Parts = dict[str, Callable[[], nn.Module]]
IMAGE_NETS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, int, int, Parts]] = {
    # name: body, channels before and after, groups of the stem that may go, modules
    "ResNeXt block": (
        resnext,
        8,
        8,
        8,
        {
            "one": lambda: norm_conv(8, 12, 1),
            "two": lambda: norm_conv(12, 12, groups=4),
            "three": lambda: norm_conv(12, 8, 1),
        },
    ),
    "inverted residual with a gate": (
        inverted_residual,
        6,
        6,
        6,
        {
            "one": lambda: norm_conv(6, 12, 1),
            "two": lambda: norm_conv(12, 12, groups=12),
            "three": lambda: norm_conv(12, 6, 1),
            "down": lambda: nn.Conv2d(12, 3, 1),
            "up": lambda: nn.Conv2d(3, 12, 1),
        },
    ),
    "dense block": (dense_block, 6, 14, 6, {"layers": lambda: nn.ModuleList([dense_layer(6), dense_layer(10)])}),
    "shuffled stages": (
        shuffle_stage,
        12,
        12,
        12,
        {"one": lambda: norm_conv(6, 6, 1), "two": lambda: norm_conv(6, 6, 1)},
    ),
    "shuffled by hand": (shuffle_by_hand, 12, 12, 12, {"one": lambda: norm_conv(6, 6, 1)}),
    "splits that feed each other": (
        res2net,
        9,
        9,
        9,
        {"one": lambda: nn.Conv2d(3, 3, 1), "two": lambda: nn.Conv2d(3, 3, 1)},
    ),
    "attention over pixels": (spatial_attention, 6, 6, 6, {"one": lambda: nn.Conv2d(2, 1, 3, padding=1)}),
    "convolution over channels": (channel_attention_1d, 6, 6, 0, {"one": lambda: nn.Conv1d(1, 1, 3, padding=1)}),
    "feature-wise transformation": (film, 6, 6, 6, {"one": lambda: nn.Linear(6, 12)}),
    "gated experts": (
        experts,
        6,
        6,
        6,
        {"one": lambda: nn.Conv2d(6, 6, 1), "two": lambda: nn.Conv2d(6, 6, 1), "gate": lambda: nn.Linear(6, 2)},
    ),
    "standardised weights": (weight_standardized, 6, 8, 0, {"one": lambda: nn.Conv2d(6, 8, 3, padding=1)}),
    "three parallel branches": (
        reparametrised,
        6,
        6,
        6,
        {"one": lambda: norm_conv(6, 6), "two": lambda: norm_conv(6, 6, 1), "three": lambda: nn.BatchNorm2d(6)},
    ),
    "cropped skip": (
        u_net,
        6,
        6,
        6,
        {
            "one": lambda: nn.Conv2d(6, 8, 3, padding=1),
            "up": lambda: nn.ConvTranspose2d(8, 6, 2, 2),
            "two": lambda: nn.Conv2d(12, 6, 3),
        },
    ),
    "non-local block": (non_local, 6, 6, 6, {}),
    "mean and variance": (mixture, 6, 3, 3, {}),
    "permuted residual": (permuted, 6, 6, 6, {"one": lambda: nn.Conv2d(6, 6, 1)}),
}


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_convolutional_nets(name: str) -> None:
    body, width, out, expected, parts = IMAGE_NETS[name]
    net = image_net(body, width, out, **{key: make() for key, make in parts.items()})
    prepared = prepared64(net, image())
    assert len(prunable(prepared, "stem.weight")) == expected
    assert_sound(prepared, image())


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding with a constant of the code."""
    left, right = x.chunk(2, -1)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1])
    both = torch.cat([angle, angle], -1)
    return x * both.cos() + torch.cat([-right, left], -1) * both.sin()


def rotary(net: Any, y: Tensor) -> Tensor:
    q, k, v = (layer(y).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    return F.scaled_dot_product_attention(rotated(q), rotated(k), v).transpose(1, 2).flatten(2)


def talking_heads(net: Any, y: Tensor) -> Tensor:
    q, k, v = (layer(y).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    scores = torch.einsum("bhqk,hg->bgqk", q @ k.transpose(-1, -2), net.mix).softmax(-1)
    return (scores @ v).transpose(1, 2).flatten(2)


def gated_unit(net: Any, y: Tensor) -> Tensor:
    left, right = net.both(y).chunk(2, -1)
    return net.down(left * torch.sigmoid(right))


TOKEN_NETS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, dict[str, Any], dict[str, int], Parts]] = {
    # name: body, features after it, configuration, groups that may go by parameter, modules
    "SwiGLU": (
        lambda net, y: net.down(F.silu(net.gate(y)) * net.up(y)) + y,
        6,
        {},
        {"stem.weight": 6, "gate.weight": 9},
        {"gate": lambda: nn.Linear(6, 9), "up": lambda: nn.Linear(6, 9), "down": lambda: nn.Linear(9, 6)},
    ),
    "gated linear unit": (
        gated_unit,
        6,
        {},
        {"both.weight": 9, "down.weight": 6},
        {"both": lambda: nn.Linear(6, 18), "down": lambda: nn.Linear(9, 6)},
    ),
    "rotary": (
        rotary,
        12,
        {},
        {"q.weight": 3, "v.weight": 3},
        {key: lambda: nn.Linear(6, 12) for key in "qkv"},
    ),
    "rotary, inside heads": (
        rotary,
        12,
        {"heads": "head_dim"},
        {"q.weight": 2, "v.weight": 4},
        {key: lambda: nn.Linear(6, 12) for key in "qkv"},
    ),
    "talking heads": (
        talking_heads,
        12,
        {},
        {"q.weight": 3, "v.weight": 3},
        {**{key: lambda: nn.Linear(6, 12) for key in "qkv"}, "mix": lambda: parameter(3, 3)},  # type: ignore[dict-item]
    ),
    "encoder layer": (
        lambda net, y: net.layer(y),
        6,
        {},
        {"layer.linear1.weight": 8, "layer.self_attn.in_proj_weight": 3},
        {"layer": lambda: nn.TransformerEncoderLayer(6, 3, 8, 0.0, batch_first=True)},
    ),
    "encoder layer, norm first": (
        lambda net, y: net.layer(y),
        6,
        {"heads": "head_dim"},
        {"layer.linear1.weight": 8, "layer.self_attn.in_proj_weight": 2 + 2},
        {"layer": lambda: nn.TransformerEncoderLayer(6, 3, 8, 0.0, batch_first=True, norm_first=True)},
    ),
    "decoder layer": (
        lambda net, y: net.layer(y, y),
        6,
        {},
        {"layer.self_attn.in_proj_weight": 3, "layer.multihead_attn.in_proj_weight": 3},
        {"layer": lambda: nn.TransformerDecoderLayer(6, 3, 8, 0.0, batch_first=True)},
    ),
    "attention over other keys": (
        lambda net, y: net.layer(y, net.memory(y).relu(), net.memory(y).relu())[0],
        6,
        {},
        {"layer.q_proj_weight": 3, "memory.weight": 4, "stem.weight": 6},
        {
            "layer": lambda: nn.MultiheadAttention(6, 3, kdim=4, vdim=4, add_bias_kv=True, batch_first=True),
            "memory": lambda: nn.Linear(6, 4),
        },
    ),
    "mixer": (
        lambda net, y: net.back(F.gelu(net.over(y.transpose(1, 2)))).transpose(1, 2) + y,
        6,
        {},
        {"stem.weight": 6, "over.weight": 9, "back.weight": 0},
        {"over": lambda: nn.Linear(7, 9, bias=False), "back": lambda: nn.Linear(9, 7, bias=False)},
    ),
    # A bias over the tokens is left in every feature: the head's columns are zeroed with it.
    "mixer with biases": (
        lambda net, y: net.back(F.gelu(net.over(y.transpose(1, 2)))).transpose(1, 2) + y,
        6,
        {},
        {"stem.weight": 6, "over.weight": 9, "back.weight": 0},
        {"over": lambda: nn.Linear(7, 9), "back": lambda: nn.Linear(9, 7)},
    ),
    "adapter": (
        lambda net, y: net.one(y) + net.up(net.down(y)),
        5,
        {},
        {"one.weight": 5, "down.weight": 2},
        {
            "one": lambda: nn.Linear(6, 5),
            "down": lambda: nn.Linear(6, 2, bias=False),
            "up": lambda: nn.Linear(2, 5, bias=False),
        },
    ),
}


@pytest.mark.parametrize("name", TOKEN_NETS)
def test_token_nets(name: str) -> None:
    body, out, config, expected, parts = TOKEN_NETS[name]
    net = token_net(body, out=out, **{key: make() for key, make in parts.items()})
    prepared = prepared64(net, tokens(), **config)
    assert {key: len(prunable(prepared, key)) for key in expected} == expected
    assert_sound(prepared, tokens())


def test_one_weight_there_and_back() -> None:
    """An autoencoder whose decoder is the transposed encoder; its outputs are the features of the input."""
    net = Net(
        lambda net, x: F.linear(F.linear(x, net.w, net.b).relu(), net.w.t()),
        w=parameter(9, 8),
        b=parameter(9),
    )
    prepared = prepared64(net, tokens())
    assert len(prunable(prepared, "w", 0)) == 9
    assert len(prunable(prepared, "w", 1)) == 0
    assert_sound(prepared, tokens())


def test_a_siamese_net() -> None:
    """The same tower on two views, and a product of their features."""

    def body(net: Any, x: Tensor) -> Tensor:
        left, right = net.tower(x), net.tower(x.flip(3))
        return net.head((left * right).mean((2, 3)) + (left - right).abs().amax((2, 3)))

    tower = nn.Sequential(norm_conv(3, 6), nn.ReLU(), norm_conv(6, 7), nn.Tanh())
    prepared = prepared64(Net(body, tower=tower, head=nn.Linear(7, 5)), image())
    assert len(prunable(prepared, "tower.0.0.weight")) == 6
    assert len(prunable(prepared, "tower.2.0.weight")) == 7
    assert_sound(prepared, image())


def test_pinned_channels_do_not_drag_others_along() -> None:
    """Only what is joined with a pinned channel stays: of two concatenated branches the other may go."""
    net = image_net(
        lambda net, y: torch.cat([net.one(y).softmax(1), net.two(y).relu()], 1),
        out=9,
        one=nn.Conv2d(6, 4, 1),
        two=nn.Conv2d(6, 5, 1),
    )
    prepared = prepared64(net, image())
    assert len(pinned(prepared, "one.weight")) == 4
    assert len(prunable(prepared, "two.weight")) == 5
    assert len(prunable(prepared, "stem.weight")) == 6
    assert_sound(prepared, image())
