"""Norms over channels that go: what is left is scaled, and a residual stream stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import geta_core as geta
from geta_core.export.runtime import OnnxModule
from geta_core.prepared import Prepared
from geta_core.slim.verify import unrounded
from tests.geta_core.graph.nets import (
    Body,
    Net,
    choose,
    double,
    fresh,
    gap,
    parameter,
    pinned,
    prepared64,
    prunable,
    rows,
    run,
    token_net,
    tokens,
)


def rms(y: Tensor, weight: Tensor, eps: float = 0.1) -> Tensor:
    """As most models write it; eps is as large as the mean square, so that a wrong one shows."""
    return weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps))


def turned(z: Tensor) -> Tensor:
    """A rotary embedding: an addition of a head to itself."""
    angle = torch.arange(z.shape[-2], dtype=z.dtype)[:, None] * torch.ones(z.shape[-1], dtype=z.dtype)
    first, second = z.chunk(2, -1)
    return z * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


def attention(net: Any, x: Tensor) -> Tensor:
    """Queries and keys are normalized over all heads; two heads of keys serve four of queries."""
    q, k, v = rms(net.q(x), net.a), rms(net.k(x), net.b), net.v(x)
    q, k, v = (z.unflatten(-1, (-1, 4)).transpose(1, 2) for z in (q, k, v))
    k, v = (z[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for z in (turned(k), v))
    scores = (turned(q) @ k.transpose(-1, -2) / 2).softmax(-1)
    return net.o((scores @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def block(net: Any, x: Tensor) -> Tensor:
    """Two residual blocks around norms of the stream."""
    y = x + attention(net, rms(x, net.c))
    gate = F.silu(net.gate(rms(y, net.d))) * net.up(rms(y, net.d))
    return rms(y + net.down(rms(gate, net.e)), net.f)


def transformer() -> Net:
    def linear(into: int, out: int) -> nn.Linear:
        return nn.Linear(into, out, bias=False)

    projections = {"q": linear(8, 16), "k": linear(8, 8), "v": linear(8, 8), "o": linear(16, 8)}
    mlp = {"gate": linear(8, 10), "up": linear(8, 10), "down": linear(10, 8)}
    norms = {name: parameter(size) for name, size in zip("abcdef", (16, 8, 8, 8, 10, 8), strict=True)}
    return token_net(block, width=8, **projections, **mlp, **norms)


def zeroed(prepared: Prepared, seed: int = 0) -> Prepared:
    prepared.zero_(choose(prepared, seed))
    return prepared


def assert_exact(prepared: Prepared, compressed: geta.Compressed, inputs: Any) -> None:
    assert compressed.report.max_error64 <= 1e-10
    for batch in (double(inputs), double(rows(fresh(inputs), 3))):
        for train in (False, True):
            assert gap(run(prepared.model, batch, train), run(compressed.model, batch, train)) <= 1e-10


def test_heads_and_inner_widths_go_and_the_stream_stays() -> None:
    prepared = prepared64(transformer(), tokens())
    assert len(prunable(prepared, "q.weight")) == 2, "a head of keys with its two of queries"
    assert prunable(prepared, "q.weight") == prunable(prepared, "a") == prunable(prepared, "o.weight", 1)
    assert len(prunable(prepared, "gate.weight")) == 10
    stream = pinned(prepared, "stem.weight")
    assert len(stream) == 8
    assert all("enters a reduction (aten.mean.dim)" in str(group.pinned) for group in stream)
    compressed = geta.finish(zeroed(prepared))
    assert not compressed.report.native
    assert "a mean over removed channels has to count them" in compressed.report.native_refusal
    assert compressed.report.inexact == 0
    assert_exact(prepared, compressed, tokens())


def test_opted_in_the_stream_is_inexact_and_the_rest_is_not() -> None:
    prepared = prepared64(transformer(), tokens(), prune_normalized=True)
    assert all(group.inexact for group in prunable(prepared, "stem.weight"))
    inner = [*prunable(prepared, "q.weight"), *prunable(prepared, "gate.weight")]
    assert not any(group.inexact for group in inner)
    prepared.zero_([inner[0].id, *(group.id for group in inner[2:5])])
    assert_exact(prepared, geta.finish(prepared), tokens())


def test_quantized_weights_and_inputs() -> None:
    bits = {"weight_bits": (4, 8), "activation_bits": (4, 8), "initial_bits": 8}
    prepared = zeroed(prepared64(transformer(), tokens(), **bits))
    assert geta.finish(prepared).report.max_error64 <= 1e-10


def test_stored_and_exported(tmp_path: Path) -> None:
    prepared = zeroed(prepared64(transformer(), tokens(), weight_bits=(4, 8), initial_bits=8))
    compressed = geta.finish(prepared)
    batch = double(tokens(3))
    expected = run(compressed.model, batch)
    compressed.save(tmp_path / "model")
    assert gap(run(geta.load(tmp_path / "model"), batch), expected) == 0
    compressed.export_pt2(tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    assert gap(run(program.module(), batch), expected) <= 1e-10


@pytest.mark.needs("onnxruntime")
def test_the_scale_reaches_onnx(tmp_path: Path) -> None:
    prepared = geta.prepare(transformer(), tokens(), geta.CompressionConfig(weight_bits=(4, 8), initial_bits=8))
    prepared.zero_(choose(prepared, 0))
    compressed = geta.finish(prepared)
    compressed.export_onnx(tmp_path / "model.onnx")
    batch = tokens(3)
    found = OnnxModule(tmp_path / "model.onnx", optimize=False)(batch)
    assert gap(found, run(compressed.model, batch)) <= 1e-5


STREAMS: dict[str, Body] = {
    "block": lambda net, y: y + net.f(y),
    "block first": lambda net, y: net.f(y) + y,
    "difference": lambda net, y: y - net.f(y),
    "in place": lambda net, y: net.f(y).add_(y),
    "shared block": lambda net, y: net.f(rms(net.f(y) + y, net.w)) + y,
    "choice": lambda net, y: torch.where(y > 0, y, net.f(y)),
    "two maps": lambda net, y: net.f(y) + net.g(y),
    "gated sum": lambda net, y: y + net.f(y) * net.g(y).sigmoid(),
}
HEADS: dict[str, Body] = {
    "map": lambda net, y: y,
    "bias": lambda net, y: y + net.b,
    "gate": lambda net, y: y * net.f(y).sigmoid(),
    "own gate": lambda net, y: F.silu(y),
    "added to itself": lambda net, y: y + y.tanh() * 0.5,
    "scaled sum with itself": lambda net, y: net.b * y + net.w * y.relu(),
    "rotation": lambda net, y: turned(y),
    "flattened heads": lambda net, y: turned(y.unflatten(-1, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(2),
    "joined tokens": lambda net, y: torch.cat([y, net.f(y)], 1),
}


def around(body: Body, norm: str) -> Net:
    parts: dict[str, Any] = {"f": nn.Linear(8, 8), "g": nn.Linear(8, 8), "b": parameter(8), "w": parameter(8)}

    def normed(net: Any, y: Tensor) -> Tensor:
        z = body(net, y)
        return net.norm(z) if norm == "module" else rms(z, net.w)

    return token_net(normed, width=8, norm=nn.RMSNorm(8, eps=None if norm == "module" else 0.1), **parts)


@pytest.mark.parametrize("norm", ["module", "by hand"])
@pytest.mark.parametrize("name", STREAMS)
def test_an_addition_of_two_maps_is_a_stream(name: str, norm: str) -> None:
    prepared = prepared64(around(STREAMS[name], norm), tokens())
    assert not prunable(prepared, "head.weight", 1)
    assert len(pinned(prepared, "head.weight", 1)) == 8


@pytest.mark.parametrize("norm", ["module", "by hand"])
@pytest.mark.parametrize("name", HEADS)
def test_what_has_one_map_is_no_stream(name: str, norm: str) -> None:
    prepared = prepared64(around(HEADS[name], norm), tokens())
    assert not pinned(prepared, "stem.weight")
    assert_exact(prepared, geta.finish(zeroed(prepared)), tokens())


@settings(max_examples=4, deadline=None)
@given(width=st.integers(3, 9), eps=st.sampled_from([None, 1e-6, 0.5]), seed=st.integers(0, 2**16))
def test_the_module_of_torch(width: int, eps: float | None, seed: int) -> None:
    """Small values, so that eps counts, and its default is that of the type."""
    torch.manual_seed(seed)
    net = token_net(lambda net, y: net.norm(1e-8 * y), width=width, norm=nn.RMSNorm(width, eps=eps))
    prepared = zeroed(prepared64(net, tokens()), seed)
    compressed = geta.finish(prepared)
    assert len(prunable(prepared, "stem.weight")) == width
    assert_exact(prepared, compressed, tokens())


def test_a_norm_that_computes_in_single_precision() -> None:
    """What it rounds differs where it takes a sum over fewer channels; the proof is told to stay in float64."""

    def body(net: Any, y: Tensor) -> Tensor:
        z = y.float()
        return net.w * (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)).to(y.dtype)

    prepared = prepared64(token_net(body, width=31, w=parameter(31)), tokens())
    compressed = geta.finish(zeroed(prepared))
    batch = double(tokens())
    rounded = gap(run(prepared.model, batch), run(compressed.model, batch))
    with unrounded():
        exact = gap(run(prepared.model, batch), run(compressed.model, batch))
    assert 1e-10 < rounded < 1e-5
    assert exact <= 1e-10
    assert compressed.report.max_error64 <= 1e-10
