"""Buffers that are filled piece by piece are concatenations; every other use of a buffer stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph.capture import ExampleInputs, capture, exported
from tests.geta_core.graph.nets import (
    Net,
    choose,
    double,
    fresh,
    gap,
    prepared64,
    prunable,
    rows,
    run,
    token_net,
    tokens,
)

aten = torch.ops.aten


def written(x: Tensor, bounds: list[int], order: list[int]) -> Tensor:
    """Tokens from the pieces between bounds, each times its number, written in some order into a fresh buffer."""
    out = x.new_empty(x.shape)
    for i in order:
        out[:, bounds[i] : bounds[i + 1]] = (i + 1) * x[:, bounds[i] : bounds[i + 1]]
    return out.tanh()


def packets(model: nn.Module, x: Tensor) -> set[Any]:
    graph = capture(model, ExampleInputs.of(x)).graph
    return {getattr(node.target, "overloadpacket", None) for node in graph.nodes}


@settings(max_examples=12, deadline=None)
@given(data=st.data(), width=st.integers(3, 9))
def test_any_pieces_in_any_order(data: st.DataObject, width: int) -> None:
    inner = data.draw(st.sets(st.integers(1, width - 1), min_size=1, max_size=3))
    bounds = [0, *sorted(inner), width]
    order = data.draw(st.permutations(range(len(bounds) - 1)))
    net, x = Net(lambda net, x: written(x, bounds, order)), torch.randn(2, width, 3)
    assert aten.cat in packets(net, x)
    assert aten.copy_ not in packets(net, x)
    from geta_core.graph.inline import inline_regions

    program = exported(net, ExampleInputs.of(x))
    inline_regions(program)
    assert torch.equal(program.module()(x), net(x))


def gap_left(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :1], out[:, 2:] = x[:, :1], x[:, 2:]
    return out


def overlapping(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :3], out[:, 2:] = x[:, :3], x[:, 2:] * 2
    return out


def read_between(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2] = x[:, :2]
    half = out.sum()
    out[:, 2:] = x[:, 2:]
    return out + half


def written_again(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2], out[:, 2:] = x[:, :2], x[:, 2:]
    return out.add_(1)


def rounded(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float16)
    out[:, :2], out[:, 2:] = x[:, :2], x[:, 2:]
    return out


def spread(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :2], out[:, 2:] = x[:, :1], x[:, 2:]
    return out


@pytest.mark.parametrize("body", [gap_left, overlapping, read_between, written_again, rounded, spread])
def test_other_uses_stay(body: Callable[[Tensor], Tensor]) -> None:
    assert aten.copy_ in packets(Net(lambda net, x: body(x)), torch.randn(2, 5, 3))


def latent(net: Any, y: Tensor) -> Tensor:
    """Keys have a part of each head and a part that all heads share, written beside each other."""
    q, k, v = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f in (net.q, net.k, net.v))
    shared = net.shared(y).unsqueeze(1) * torch.arange(1.0, 3.0, dtype=y.dtype)
    keys = k.new_empty(*k.shape[:-1], 6)
    keys[..., :4], keys[..., 4:] = k, shared.expand(-1, 4, -1, -1)
    return ((q @ keys.transpose(-1, -2) / 3).softmax(-1) @ v).transpose(1, 2).flatten(2)  # type: ignore[no-any-return]


def test_heads_beside_a_part_that_all_share() -> None:
    parts = {"q": nn.Linear(8, 24), "k": nn.Linear(8, 16), "v": nn.Linear(8, 12), "shared": nn.Linear(8, 2)}
    prepared = prepared64(token_net(latent, width=8, out=12, **parts), tokens())
    heads = prunable(prepared, "q.weight")
    assert len(heads) == 4
    assert heads == prunable(prepared, "k.weight") == prunable(prepared, "v.weight")
    prepared.zero_(choose(prepared, 0))
    compressed = geta.finish(prepared)
    assert compressed.report.max_error64 <= 1e-10
    for batch in (double(tokens()), double(rows(fresh(tokens()), 3))):
        assert gap(run(prepared.model, batch), run(compressed.model, batch)) <= 1e-10
