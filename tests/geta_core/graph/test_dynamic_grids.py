"""Quantizers whose grid follows the values at hand, as plain tensor code: what is zero stays zero, or has to stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph import Group
from tests.geta_core.graph.nets import (
    assert_sound,
    pinned,
    prepared64,
    prunable,
    token_net,
    tokens,
)

Grid = Callable[[Tensor], Tensor]


def levels(x: Tensor, low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whole levels 0 .. top of x, the step, and the whole zero point."""
    step = ((high - low) / top).clamp(min=1e-9)
    zero = (-low / step).round()
    return ((x / step).round() + zero).clamp(0, top), step, zero


def per_token(x: Tensor, top: int = 255) -> Tensor:
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    q, step, zero = levels(x, low, high, top)
    return (q - zero) * step


def per_tensor(x: Tensor, top: int = 255) -> Tensor:
    low, high = torch.aminmax(x)
    q, step, zero = levels(x, -(-low).relu(), high.relu(), top)
    return q * step - zero * step


def largest_size(x: Tensor, top: int = 127) -> Tensor:
    step = x.abs().amax((1, 2), keepdim=True).clamp(min=1e-9) / top
    return (x / step).round().clamp(-top, top) * step


def straight_through(x: Tensor, top: int = 255) -> Tensor:
    return x + (per_token(x, top) - x).detach()


def in_whole_numbers(x: Tensor, top: int = 255) -> Tensor:
    low, high = x.min(-1)[0], x.max(-1)[0]
    low, high = torch.minimum(low, torch.zeros_like(low)), torch.maximum(torch.zeros_like(high), high)
    step = ((high - low) / top).clamp(min=1e-9)[..., None]
    zero = (-low[..., None] / step).round().to(torch.int32)
    q = torch.clamp((x / step).round().to(torch.int32) + zero, 0, top)
    return (q - zero).to(x.dtype) * step


EXACT: dict[str, Callable[..., Tensor]] = {
    grid.__name__: grid for grid in (per_token, per_tensor, largest_size, straight_through, in_whole_numbers)
}


@settings(max_examples=6)
@given(name=st.sampled_from(sorted(EXACT)), width=st.integers(2, 7), top=st.sampled_from([3, 15, 255]))
def test_a_range_that_holds_zero(name: str, width: int, top: int) -> None:
    """Removed channels are zeros, which neither the range nor the zero point can see."""
    net = token_net(lambda net, y: EXACT[name](y, top), width=width)
    prepared = prepared64(net, tokens())
    assert len(prunable(prepared, "stem.weight")) == width
    assert_sound(prepared, tokens())


def test_the_weights_grid_follows_the_weight() -> None:
    """Rows and columns of a weight whose own range makes its grid."""

    def body(net: Any, y: Tensor) -> Tensor:
        return nn.functional.linear(y.relu(), per_token(net.middle.weight, 15), net.middle.bias).relu()

    prepared = prepared64(token_net(body, out=9, middle=nn.Linear(6, 9)), tokens())
    assert len(prunable(prepared, "stem.weight")) == 6
    assert len(prunable(prepared, "middle.weight")) == 9
    assert_sound(prepared, tokens())


def without_zero(x: Tensor) -> Tensor:
    q, step, zero = levels(x, x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), 255)
    return (q - zero) * step


@pytest.mark.parametrize("opted", [False, True])
def test_a_range_that_may_leave_zero_out(opted: bool) -> None:
    """The zero of a removed channel widens it; and where all values are positive zero has no level."""
    prepared = prepared64(token_net(lambda net, y: without_zero(y)), tokens(), prune_normalized=opted)
    groups = prunable(prepared, "stem.weight") if opted else pinned(prepared, "stem.weight")
    assert len(groups) == 6
    if opted:
        assert all(group.inexact and read_as(group) == "PRODUCE" for group in groups)
    else:
        assert all(str(group.pinned).startswith("enters a reduction (aten.amin") for group in groups)


def opted_range(x: Tensor) -> Tensor:
    """A step from a range that may leave zero out; without a zero point a zero has a level nevertheless."""
    step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)).clamp(min=1e-9) / 255
    return (x / step).round() * step


def test_a_step_from_such_a_range_is_opted_in_and_flagged() -> None:
    prepared = prepared64(token_net(lambda net, y: opted_range(y)), tokens(), prune_normalized=True)
    groups = prunable(prepared, "stem.weight")
    assert len(groups) == 6
    assert all(group.inexact for group in groups)
    prepared.zero_(groups[:2])
    assert geta.finish(prepared).report.inexact == 2


def offset(x: Tensor) -> Tensor:
    """Levels counted from the smallest value: zero is between two of them."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 15).clamp(min=1e-9)
    return ((x - low) / step).round() * step + low


def of_another_token(x: Tensor) -> Tensor:
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    q, step, zero = levels(x, low, high, 255)
    return (q - zero.transpose(0, 1).reshape(zero.shape)) * step


def written_between(x: Tensor) -> Tensor:
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    q, step, zero = levels(x, low, high, 255)
    zero.view(-1).add_(1)
    return (q - zero) * step


def narrow_clamp(x: Tensor) -> Tensor:
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-9)
    zero = (-low / step).round()
    return (((x / step).round() + zero).clamp(100, 255) - zero) * step


@pytest.mark.parametrize("grid", [offset, of_another_token, written_between, narrow_clamp])
def test_what_does_not_cancel(grid: Grid) -> None:
    """Something is left of a zero channel, so that what reads it has to be zero, too."""
    prepared = prepared64(token_net(lambda net, y: grid(y)), tokens())
    groups = prunable(prepared, "stem.weight")
    assert len(groups) == 6
    assert {read_as(group) for group in groups} == {"PRODUCE"}
    assert_sound(prepared, tokens())


def read_as(group: Group) -> str:
    """What happens to the columns that read a channel when its group goes."""
    return next(member.role for member in group.members if member.name == "head.weight")
