"""Choices, sorting, running sums, transforms and writing by an index: rows of positions stay, channels pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.geta_core.graph.nets import (
    Body,
    assert_sound,
    double,
    effect_of_reading,
    image,
    image_net,
    parameter,
    pinned,
    prepared64,
    prunable,
    token_net,
    tokens,
)

few = settings(max_examples=6)


def best(y: Tensor, count: int) -> Tensor:
    """The tokens of the largest first input, by an index that is repeated over the features."""
    index = y.detach().pow(2).sum(-1).topk(count, dim=1).indices
    return y.gather(1, index.unsqueeze(-1).expand(-1, -1, y.shape[-1]))


def written(y: Tensor, values: Tensor) -> Tensor:
    z = y.clone()
    z[:, torch.tensor([1, 4])] = values
    return z


def in_part(net: Any, y: Tensor) -> Tensor:
    z = y.relu()
    z[:, 2:5] = net.b(y)[:, :3]
    return z


FEATURES: dict[str, tuple[Body, int]] = {
    # name: body on [N, 7, 6], how many of the six features may go
    "running sum of tokens": (lambda net, y: y.cumsum(1), 6),
    "running sum of features": (lambda net, y: y.cumsum(-1), 0),
    "running product of tokens": (lambda net, y: y.cumprod(1), 6),
    "running maximum": (lambda net, y: y.cummax(1)[0], 6),
    "sorted tokens": (lambda net, y: y.sort(1)[0], 6),
    "sorted features": (lambda net, y: y.sort(-1)[0], 0),
    "order of the tokens": (lambda net, y: y * y.argsort(1), 6),
    "largest tokens": (lambda net, y: y.topk(3, 1)[0], 6),
    "lower triangle": (lambda net, y: y.tril(), 0),
    "chosen by another's value": (lambda net, y: best(y, 3), 6),
    "chosen feature by feature": (lambda net, y: y.gather(1, y.argsort(1)[:, :3]), 6),
    "chosen along": (lambda net, y: torch.take_along_dim(y, y.argsort(1), 1), 6),
    "index_select of tokens": (lambda net, y: y.index_select(1, torch.tensor([3, 0, 0])), 6),
    "written by an index": (lambda net, y: written(y, net.b(y)[:, 2:4].relu()), 6),
    "written by a mask": (lambda net, y: y.masked_fill(y > 0, 0.0), 6),
    "a mask that fills with ones": (lambda net, y: y.masked_fill(y > 0.1, 1.0), 6),
    "added by an index": (lambda net, y: y.index_add(1, torch.tensor([1, 1]), net.b(y)[:, :2]), 6),
    "copied": (lambda net, y: torch.zeros_like(y).copy_(y), 6),
    "written in place into a part": (in_part, 6),
    "logsumexp of tokens": (lambda net, y: y * y.logsumexp(1, keepdim=True), 6),
    "logsumexp of features": (lambda net, y: y * y.logsumexp(-1, keepdim=True), 0),
    "variance and mean": (lambda net, y: (lambda v, m: y * v + m)(*torch.var_mean(y, 1, keepdim=True)), 6),
    "median of tokens": (lambda net, y: y * y.median(1, keepdim=True)[0], 6),
    "Fourier transform of tokens": (lambda net, y: torch.fft.fft(y, dim=1).real, 6),
    "Fourier transform of both": (lambda net, y: torch.fft.fft2(y).real, 0),
    "filtered by frequency": (
        lambda net, y: torch.fft.irfft(torch.fft.rfft(y, dim=1) * torch.view_as_complex(net.f), n=7, dim=1),
        6,
    ),
    "rows of a table": (lambda net, y: y * net.table[torch.tensor([2, 0, 1, 1, 0, 2, 2])], 6),
    "features by a constant index": (lambda net, y: y[..., torch.tensor([5, 1, 3, 0, 2, 4])] + net.b(y), 6),
    "expanded like another": (lambda net, y: y * net.gate(y).expand_as(y), 6),
    "channels of a head": (lambda net, y: heads_over_channels(y), 3),
}


def heads_over_channels(y: Tensor) -> Tensor:
    """Attention between the channels of each head: whole heads may go."""
    z = y.unflatten(-1, (3, 2)).permute(0, 2, 3, 1)
    return ((z @ z.mT).softmax(-1) @ z).permute(0, 3, 1, 2).flatten(2)


@pytest.mark.parametrize("name", FEATURES)
def test_operations_on_tokens(name: str) -> None:
    body, expected = FEATURES[name]
    parts = {"b": nn.Linear(6, 6), "table": parameter(3, 6), "f": parameter(4, 6, 2), "gate": nn.Linear(6, 1)}
    prepared = prepared64(token_net(body, **parts), tokens())
    assert len(prunable(prepared, "stem.weight")) == expected
    assert_sound(prepared, tokens())


def test_a_mask_that_fills_reads_a_comparison_with_zero() -> None:
    """``y >= 0`` is true at zero, so what it fills with stays in a removed channel: what reads it is zeroed."""
    prepared = prepared64(token_net(lambda net, y: y.masked_fill(y >= 0, 1.0)), tokens())
    (group, *_) = prunable(prepared, "stem.weight")
    assert ("head.weight", "PRODUCE") in {(member.name, member.role) for member in group.members}
    assert_sound(prepared, tokens())


def overlapping(y: Tensor) -> Tensor:
    first, second = y[..., :3], y[..., :4]
    first.add_(1.0)
    return torch.cat([second, y[..., 4:]], -1)


def test_a_view_that_shares_memory_is_not_believed_to_be_zero() -> None:
    """A part of a value is written; another view of it, made before, reads what was written."""
    prepared = prepared64(token_net(lambda net, y: overlapping(y.relu())), tokens())
    rows = {
        i for g in prunable(prepared, "stem.weight") for m in g.members if m.name == "stem.weight" for i in m.indices
    }
    assert not rows & {0, 1, 2}
    assert_sound(prepared, tokens())


WINDOWS: dict[str, tuple[Body, int, int]] = {
    # name: body on [N, 6, 8, 8], channels after it, how many of the six may go
    "im2col": (lambda net, y: F.unfold(y, 3, padding=1).unflatten(-1, (8, 8)), 54, 6),
    "im2col and back": (lambda net, y: F.fold(F.unfold(y, 2, stride=2), (8, 8), 2, stride=2), 6, 6),
    "fold": (lambda net, y: F.fold(net.wide(y).flatten(2), (9, 9), 2), 3, 6),
    "sliding windows": (lambda net, y: y.unfold(2, 3, 1).unfold(3, 2, 2).flatten(4).mean(-1), 6, 6),
    "sliding over channels": (lambda net, y: y.unfold(1, 3, 1).sum(-1), 4, 0),
    "sampled": (lambda net, y: F.grid_sample(y, net.grid.expand(len(y), -1, -1, -1), align_corners=False), 6, 6),
    "antialiased": (lambda net, y: F.interpolate(y, size=(5, 6), mode="bilinear", antialias=True), 6, 6),
    "strides": (lambda net, y: y.contiguous().as_strided((len(y), 6, 4, 8), (384, 64, 16, 1)), 6, 0),
    "shape of another": (lambda net, y: y.flatten(2).reshape_as(y), 6, 6),
    "weight standardised": (lambda net, y: F.conv2d(y, standard(net.w)), 4, 0),
    "exact nearest": (lambda net, y: F.interpolate(y, scale_factor=2, mode="nearest-exact"), 6, 6),
}


def standard(weight: Tensor) -> Tensor:
    """Weight standardisation as batch norm of the weight: its inputs enter the statistics."""
    return F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True).reshape_as(weight)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_and_layouts(name: str) -> None:
    body, out, expected = WINDOWS[name]
    parts = {"grid": torch.rand(1, 5, 4, 2) * 2 - 1, "wide": nn.Conv2d(6, 12, 1), "w": parameter(4, 6, 1, 1)}
    prepared = prepared64(image_net(body, out=out, **parts), image())
    assert len(prunable(prepared, "stem.weight")) == expected
    assert_sound(prepared, image())


def rotated(net: Any, y: Tensor) -> Tensor:
    """Rotary embedding by complex numbers: 2 heads of 2 pairs."""
    q, k, v = (layer(y).unflatten(-1, (2, 4)) for layer in (net.q, net.k, net.v))
    turn = torch.view_as_complex(net.turn)[:, None]
    q, k = (torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (2, 2))) * turn).flatten(-2) for z in (q, k))
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).mT.flatten(1, 2).mT


@pytest.mark.parametrize(("heads", "expected"), [("head", 2), ("head_dim", 4)])
def test_complex_rotary_embedding(heads: str, expected: int) -> None:
    parts = {name: nn.Linear(6, 8) for name in "qkv"}
    prepared = prepared64(token_net(rotated, out=8, **parts, turn=torch.randn(7, 2, 2)), tokens(), heads=heads)
    assert len(prunable(prepared, "v.weight")) == expected
    assert prunable(prepared, "q.weight")
    assert_sound(prepared, tokens())


def partly_rotated(net: Any, y: Tensor) -> Tensor:
    """Fused qkv by heads, of which the first half of each head is rotated (a pair of one and one)."""
    q, k, v = net.qkv(y).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, -1)

    def turned(z: Tensor) -> Tensor:
        first, rest = z[..., :2], z[..., 2:]
        a, b = first.chunk(2, -1)
        return torch.cat([first * net.cos + torch.cat([-b, a], -1) * net.sin, rest], -1)

    return F.scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2)


def test_partial_rotary_embedding_keeps_heads() -> None:
    parts = {"qkv": nn.Linear(6, 24), "cos": torch.randn(7, 2), "sin": torch.randn(7, 2)}
    prepared = prepared64(token_net(partly_rotated, out=8, **parts), tokens())
    groups = prunable(prepared, "qkv.weight")
    assert [sum(len(m.indices) for m in g.members if m.name == "qkv.weight") for g in groups] == [12, 12]
    assert_sound(prepared, tokens())


def test_queries_that_share_keys_inside_the_operation() -> None:
    def body(net: Any, y: Tensor) -> Tensor:
        q = net.q(y).unflatten(-1, (4, -1)).transpose(1, 2)
        k, v = (layer(y).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (net.k, net.v))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)

    parts = {"q": nn.Linear(6, 12), "k": nn.Linear(6, 6), "v": nn.Linear(6, 6)}
    prepared = prepared64(token_net(body, out=12, **parts), tokens())
    assert len(prunable(prepared, "q.weight")) == 2
    assert prunable(prepared, "q.weight") == prunable(prepared, "k.weight") == prunable(prepared, "v.weight")
    assert_sound(prepared, tokens())


def alibi(net: Any, y: Tensor) -> Tensor:
    """Attention with a slope per head that the code computes, heads and batch in one dimension."""
    q, k, v = (f(y).unflatten(-1, (3, -1)).transpose(1, 2).flatten(0, 1) for f in (net.q, net.k, net.v))
    slopes = torch.pow(0.5, torch.arange(1, 4, dtype=y.dtype))
    bias = (slopes[:, None, None] * torch.arange(7, dtype=y.dtype)).repeat(y.shape[0], 1, 1)
    scores = torch.baddbmm(bias, q, k.mT, beta=0.5, alpha=0.3).softmax(-1)
    return torch.bmm(scores, v).unflatten(0, (-1, 3)).transpose(1, 2).flatten(2)


def test_slopes_that_the_code_computes_go_with_their_head() -> None:
    parts = {name: nn.Linear(6, 12) for name in "qkv"}
    prepared = prepared64(token_net(alibi, out=12, **parts), tokens())
    assert len(prunable(prepared, "v.weight")) == 3
    assert_sound(prepared, tokens())


KINDS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones; the last state is read as well."""

    def __init__(self, layer: Any, out: int) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(8, 5), layer, nn.Linear(out, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(self.stem(x).tanh())
        result: Tensor = self.head(y)
        return result


@few
@given(
    kind=st.sampled_from(sorted(KINDS)),
    units=st.integers(3, 6),
    layers=st.integers(1, 2),
    both=st.booleans(),
    bias=st.booleans(),
)
def test_recurrent_layers(kind: str, units: int, layers: int, both: bool, bias: bool) -> None:
    """Every unit goes by itself, with its gates, in every layer and direction."""
    layer = KINDS[kind](5, units, layers, batch_first=True, bidirectional=both, bias=bias)
    prepared = prepared64(Recurrent(layer, units * (1 + both)), tokens())
    assert len(prunable(prepared, "stem.weight")) == 5
    for number in range(layers):
        for suffix in ("", "_reverse") if both else ("",):
            assert len(prunable(prepared, f"layer.weight_hh_l{number}{suffix}")) == units
    compressed = assert_sound(prepared, tokens())
    assert compressed is not None and compressed.report.native


def test_projected_lstm() -> None:
    prepared = prepared64(Recurrent(nn.LSTM(5, 6, batch_first=True, proj_size=4), 4), tokens())
    assert len(prunable(prepared, "layer.weight_hh_l0")) == 6
    assert len(prunable(prepared, "layer.weight_hr_l0")) == 4
    assert_sound(prepared, tokens())


def test_a_first_state_that_is_not_zero_keeps_its_units() -> None:
    class Started(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            start = torch.ones(1, x.shape[0], 4, dtype=x.dtype)
            result: Tensor = self.head(self.layer(self.stem(x).tanh(), start)[0])
            return result

    prepared = prepared64(Started(nn.GRU(5, 4, batch_first=True), 4), tokens())
    assert len(prunable(prepared, "layer.weight_hh_l0")) == 0
    assert effect_of_reading(prepared, pinned(prepared, "layer.weight_hh_l0")[0], double(tokens())) > 1e-3
