"""Operations that move elements: labels move with them, and what must stay a block does."""

from __future__ import annotations

from collections.abc import Callable
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
    image,
    image_net,
    parameter,
    pinned,
    prepared64,
    prunable,
    token_net,
    tokens,
)

few = settings(max_examples=10)


def literal(y: Tensor) -> Tensor:
    """Numbers in the code: the net's own class cannot be cut, the graph's numbers must follow."""
    return y.relu().reshape(-1, 6 * 64).reshape(-1, 6, 8, 8)


MOVES: dict[str, tuple[Body, int, int]] = {
    # name: body, channels after it, groups of the stem
    "view": (lambda net, y: y.view(y.shape[0], 6, 64).view(y.shape), 6, 6),
    "permute": (lambda net, y: y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 6, 6),
    "transpose": (lambda net, y: y.transpose(1, 3).mT.transpose(2, 3).swapdims(1, 2).movedim(-1, 1), 6, 6),
    "flatten and unflatten": (lambda net, y: y.flatten(1).unflatten(1, (-1, 8, 8)), 6, 6),
    "squeeze": (lambda net, y: y[:, :, None].squeeze(2), 6, 6),
    "flip": (lambda net, y: y.flip(1), 6, 6),
    "flip added": (lambda net, y: y.relu() + net.b(y).flip(1), 6, 6),
    "roll of pixels": (lambda net, y: y.roll(3, 2), 6, 6),
    "roll of channels": (lambda net, y: y.relu() + net.b(y).roll(2, 1), 6, 6),
    "roll of both": (lambda net, y: literal(y).roll((-1, 2), (1, 3)) + net.b(y), 6, 6),
    "two slices": (lambda net, y: torch.cat([y[:, 4:], y[:, :4]], 1), 6, 6),
    "slice with a step": (lambda net, y: torch.cat([y[:, 1::2], y[:, ::3]], 1), 5, 6),
    "negative slice": (lambda net, y: y[:, -4:-1], 3, 6),
    "narrow": (lambda net, y: y.narrow(1, -4, 3), 3, 6),
    "ellipsis": (lambda net, y: y[..., 1:], 6, 6),
    # A value of one channel has nothing to lose but itself, so that channel stays.
    "a single channel": (lambda net, y: torch.cat([y[:, :1], y[:, 1:]], 1), 6, 5),
    "split": (lambda net, y: torch.cat(y.split(4, 1)[::-1], 1), 6, 6),
    "split into sizes": (lambda net, y: torch.cat(y.split([4, 2], dim=1)[::-1], 1), 6, 6),
    "uneven chunks": (lambda net, y: torch.cat(y.chunk(4, 1)[::-1], 1), 6, 6),
    "tensor_split": (lambda net, y: torch.cat(y.tensor_split([1, 3], 1)[::-1], 1), 6, 5),
    "halves that meet": (lambda net, y: (lambda a, b: a.relu() * b)(*y.chunk(2, 1)), 3, 3),
    "thirds that meet": (lambda net, y: (lambda a, b, c: a * b + c)(*y.chunk(3, 1)), 2, 2),
    "repeat": (lambda net, y: y.repeat(1, 2, 1, 1), 12, 6),
    "tile": (lambda net, y: y.tile(1, 2, 1, 1), 12, 6),
    "repeat_interleave": (lambda net, y: y.repeat_interleave(2, 1), 12, 6),
    "expand to the left": (lambda net, y: y[:, None].expand(-1, 2, -1, -1, -1).flatten(1, 2), 12, 6),
    "expand to the right": (lambda net, y: y[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2), 12, 6),
    "stack and sum": (lambda net, y: torch.stack([y, net.b(y).relu()], 1).sum(1), 6, 6),
    "stack and unbind": (lambda net, y: (lambda a, b: a * b)(*torch.stack([y, net.b(y)]).unbind(0)), 6, 6),
    "joined with itself": (lambda net, y: torch.cat([y.relu(), (-y).relu()], 1), 12, 6),
    "joined over pixels": (lambda net, y: torch.cat([y.relu(), -y.relu()], 2), 6, 6),
    "joined with constants": (lambda net, y: torch.cat([y, y.detach()[:, :2] * 0 + 1], 1), 8, 6),
    "joined with ones": (lambda net, y: torch.cat([y.relu(), torch.ones(y.shape[0], 2, 8, 8).double()], 1), 8, 6),
    "pad pixels": (lambda net, y: F.pad(y.relu(), (1, 2, 0, 1)), 6, 6),
    "pad pixels with 1": (lambda net, y: F.pad(y.relu(), (1, 2, 0, 1), value=1.0), 6, 6),
    "pad by reflection": (lambda net, y: F.pad(y.relu(), (1, 2, 0, 1), mode="reflect"), 6, 6),
    "pad channels": (lambda net, y: F.pad(y.relu(), (0, 0, 0, 0, 1, 2)), 9, 6),
    "pad channels with 1": (lambda net, y: F.pad(literal(y), (0, 0, 0, 0, 1, 2), value=1.0), 9, 6),
    "pixel shuffle": (lambda net, y: F.pixel_shuffle(y.relu()[:, :4], 2), 1, 2),
    "pixel unshuffle": (lambda net, y: F.pixel_unshuffle(y.relu(), 2), 24, 6),
    "channel shuffle": (lambda net, y: F.channel_shuffle(y.relu(), 3), 6, 2),
    "channel shuffle by hand": (
        lambda net, y: y.relu().view(y.shape[0], 3, -1, 8, 8).transpose(1, 2).reshape(y.shape[0], -1, 8, 8),
        6,
        2,
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str) -> None:
    body, out, expected = MOVES[name]
    prepared = prepared64(image_net(body, out=out, b=nn.Conv2d(6, 6, 1)), image())
    assert len(prunable(prepared, "stem.weight")) == expected
    assert_sound(prepared, image())


LITERAL: dict[str, tuple[Body, int]] = {
    # The same on the graph, whose numbers are rewritten.
    "slice with a step": (lambda net, y: torch.cat([literal(y)[:, 1::2], literal(y)[:, ::3]], 1), 5),
    "tensor_split": (lambda net, y: torch.cat(literal(y).tensor_split(4, 1)[::-1], 1), 6),
    "narrow": (lambda net, y: literal(y).narrow(1, 2, 3), 3),
    "unbind": (lambda net, y: torch.stack(literal(y).unbind(1)[2:], 1), 4),
    "select": (lambda net, y: literal(y) * literal(y).select(1, -2).unsqueeze(1), 6),
    "expand": (lambda net, y: literal(y) * net.g.expand(y.shape[0], 6, 8, 8), 6),
    "repeat": (lambda net, y: literal(y).repeat(1, 2, 1, 1).repeat_interleave(2, 1), 24),
    "pixel shuffle": (lambda net, y: F.pixel_shuffle(literal(y)[:, 2:], 2), 1),
    "channel shuffle": (lambda net, y: F.channel_shuffle(literal(y), 2), 6),
    "constant of the code": (lambda net, y: literal(y) * torch.tensor([1.0, 2, 3, 4, 5, 6]).view(6, 1, 1), 6),
    "depthwise": (lambda net, y: net.depthwise(literal(y)), 6),
    "depthwise transposed": (lambda net, y: net.transposed(literal(y)), 6),
    "grouped": (lambda net, y: net.grouped(literal(y)), 4),
}


@pytest.mark.parametrize("name", LITERAL)
def test_moves_in_a_graph_module(name: str) -> None:
    body, out = LITERAL[name]
    net = image_net(
        body,
        out=out,
        g=parameter(1, 6, 1, 1),
        depthwise=nn.Conv2d(6, 6, 3, groups=6),
        transposed=nn.ConvTranspose2d(6, 6, 2, 2, groups=6),
        grouped=nn.Conv2d(6, 4, 3, groups=2),
    )
    prepared = prepared64(net, image())
    compressed = assert_sound(prepared, image())
    assert compressed is not None and not compressed.report.native
    names = set(dict(prepared.model.named_parameters()))
    assert set(compressed.model.state_dict()) == names, "constants of the code are no part of the state"


@few
@given(before=st.lists(st.integers(2, 5), min_size=1, max_size=3), cuts=st.data())
def test_joined_and_split_elsewhere(before: list[int], cuts: Any) -> None:
    """Pieces that are joined and split at other places keep one group per channel."""
    total = sum(before)
    bounds = sorted({2 * cut for cut in cuts.draw(st.sets(st.integers(1, total // 2), max_size=3))} | {total})
    bounds = [bound for bound in bounds if total - bound != 1]
    after = [b - a for a, b in zip([0, *bounds], bounds, strict=False)]

    def body(net: Any, y: Tensor) -> Tensor:
        joined = torch.cat([layer(y) for layer in net.pieces], 1)
        parts = [layer(part.relu()) for layer, part in zip(net.heads, joined.split(after, 1), strict=True)]
        return torch.stack(parts).sum(0)

    pieces = nn.ModuleList(nn.Conv2d(6, size, 1) for size in before)
    heads = nn.ModuleList(nn.Conv2d(size, 3, 1) for size in after)
    prepared = prepared64(image_net(body, out=3, pieces=pieces, heads=heads), image())
    for position, size in enumerate(before):
        assert len(prunable(prepared, f"pieces.{position}.weight")) == size
    assert_sound(prepared, image())


@few
@given(factors=st.lists(st.integers(1, 3), min_size=2, max_size=3), order=st.permutations([0, 1, 2]))
def test_any_factoring_of_the_channels(factors: list[int], order: list[int]) -> None:
    """Channels that are unfolded, permuted and folded again: each keeps its group while nothing asks for blocks."""
    width = 1
    for factor in factors:
        width *= factor
    order = [i for i in order if i < len(factors)]

    def body(net: Any, y: Tensor) -> Tensor:
        folded = y.unflatten(-1, factors)
        return folded.permute(0, 1, *(2 + i for i in order)).flatten(2).relu()

    prepared = prepared64(token_net(body, width=width), tokens())
    groups = prunable(prepared, "stem.weight")
    assert sum(len(m.indices) for g in groups for m in g.members if m.name == "stem.weight") in (0, width)
    assert width < 4 or groups
    assert_sound(prepared, tokens())


def test_what_is_left_is_a_block() -> None:
    """Channels that are seen as [2, 3] lose the same column from both rows; qkv loses heads from all three."""
    net = token_net(lambda net, y: y.unflatten(-1, (2, 3)).relu().flatten(2))
    prepared = prepared64(net, tokens())
    rows = [m.indices for g in prunable(prepared, "stem.weight") for m in g.members if m.name == "stem.weight"]
    assert sorted(rows) == [(0, 3), (1, 4), (2, 5)]


def body_of_tokens(net: Any, y: Tensor) -> Tensor:
    joined = torch.cat([net.token.expand(y.shape[0], -1, -1), y], 1) + net.position
    return net.mlp(joined)[:, 0]


def test_class_token_and_position_embedding() -> None:
    net = token_net(
        body_of_tokens,
        token=parameter(1, 1, 6),
        position=parameter(1, 8, 6),
        mlp=nn.Sequential(nn.Linear(6, 6), nn.GELU()),
    )
    prepared = prepared64(net, tokens())
    (group, *rest) = prunable(prepared, "stem.weight")
    assert len(rest) == 5
    assert {(m.name, m.dim, m.role) for m in group.members} == {
        ("stem.weight", 0, "PRODUCE"),
        ("stem.bias", 0, "PRODUCE"),
        ("token", 2, "PRODUCE"),
        ("position", 2, "PRODUCE"),
        ("mlp.0.weight", 1, "CONSUME"),
    }
    assert not prunable(prepared, "position", 1), "positions stay"
    assert_sound(prepared, tokens())


SHORTCUTS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    # A shortcut without parameters from 4 to 8 channels: zeros before and after, or only after.
    "both sides": (lambda y: F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), 4),
    "one side": (lambda y: F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)), 4),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_zero_padded_shortcut(name: str) -> None:
    """The padding channels face zeros that cannot be removed, so they stay; the others go with the stem's."""
    shortcut, expected = SHORTCUTS[name]
    net = image_net(
        lambda net, y: (net.b(y.relu()) + shortcut(y.relu())).relu(), width=4, out=8, b=nn.Conv2d(4, 8, 3, 2, 1)
    )
    prepared = prepared64(net, image())
    assert len(prunable(prepared, "stem.weight")) == expected
    assert len(pinned(prepared, "b.weight")) == 4
    assert_sound(prepared, image())


def test_a_block_with_gaps_is_found_in_the_end() -> None:
    """Channels that share a block with constants: those that face a constant stay, the others go in pairs."""

    def body(net: Any, y: Tensor) -> Tensor:
        gap = torch.eye(2, dtype=y.dtype)[0].expand(y.shape[0], 7, 2)
        return torch.cat([y[..., :2], gap, y[..., 2:]], -1).unflatten(-1, (2, 4)).relu().flatten(2)

    prepared = prepared64(token_net(body, out=8), tokens())
    rows = [m.indices for g in prunable(prepared, "stem.weight") for m in g.members if m.name == "stem.weight"]
    assert sorted(rows) == [(0, 2), (1, 3)]
    assert_sound(prepared, tokens())


def test_a_constant_that_the_code_makes_follows() -> None:
    """Zeros, ones and ranges have no index of their own to keep: what they meet says which go."""

    def body(net: Any, y: Tensor) -> Tensor:
        gap = torch.zeros(y.shape[0], 7, 2, dtype=y.dtype)
        z = torch.cat([y[..., :2], gap, y[..., 2:]], -1).unflatten(-1, (2, 4)).relu().flatten(2)
        ranged = torch.arange(1, 9, dtype=y.dtype)
        return z * ranged + z.new_zeros(8) + z * torch.full((1, 8), 3.0, dtype=y.dtype)

    prepared = prepared64(token_net(body, out=8), tokens())
    rows = [m.indices for g in prunable(prepared, "stem.weight") for m in g.members if m.name == "stem.weight"]
    assert sorted(rows) == [(0, 2), (1, 3), (4,), (5,)]
    compressed = assert_sound(prepared, tokens())
    assert compressed is not None and not compressed.report.native
