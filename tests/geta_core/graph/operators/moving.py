"""Operations that move, join, pad and choose elements, and values that the code makes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.geta_core.graph.operators.case import Case
from tests.geta_core.graph.operators.linear import p, weight

aten = torch.ops.aten


def parts(y: Tensor, pieces: Any, dim: int = -1) -> Tensor:
    """Pieces in the reverse order."""
    return torch.cat(list(pieces)[::-1], dim)


def thirds(y: Tensor) -> list[int]:
    return [2, y.shape[1] - 2]


def complex_of(y: Tensor) -> Tensor:
    """Tokens of pairs as complex numbers."""
    return torch.view_as_complex(torch.stack([y, 2 * y.relu()], -1))


def in_place(op: Any, *args: Any) -> Any:
    return lambda net, y: op(y.relu().clone(), *args)


MOVING: tuple[Case, ...] = (
    Case("view", lambda net, y: y.view(y.shape[0], -1, 1, y.shape[-1]).view(y.shape)),
    Case("unsafe view", lambda net, y: aten._unsafe_view(y, [y.shape[0] * y.shape[1], y.shape[2]])),
    Case("reshape", lambda net, y: y.transpose(1, 2).reshape(y.shape[0], -1).reshape(y.shape[0], -1, y.shape[1]).mT),
    Case("contiguous", lambda net, y: aten.contiguous(y.mT).mT),
    Case("permute", lambda net, y: y.permute(2, 0, 1), out=0),
    Case("transpose in place", in_place(aten.transpose_, 1, 2), out=1),
    Case("t", lambda net, y: y @ net.w.t(), weight(5, "c")),
    Case("t in place", lambda net, y: y.relu().sum(1).clone().t_(), out=0),
    Case("flatten", lambda net, y: aten.unflatten(aten.flatten(y, 0, 1), 0, [y.shape[0], -1])),
    Case("unbind", lambda net, y: torch.stack(y.unbind(1)[::-1], 1)),
    Case("split", lambda net, y: parts(y, y.split(2, 1), 1)),
    Case("split of channels", lambda net, y: (lambda a, b: a * b)(*y.split(y.shape[-1] // 2, -1)), free="some"),
    Case("split with sizes", lambda net, y: parts(y, y.split_with_sizes(thirds(y), 1), 1)),
    Case("unsafe split", lambda net, y: parts(y, aten.unsafe_split(y, 2, 1), 1)),
    Case("unsafe split with sizes", lambda net, y: parts(y, aten.unsafe_split_with_sizes(y, thirds(y), 1), 1)),
    Case("unsafe chunk", lambda net, y: parts(y, aten.unsafe_chunk(y, 2, 1), 1)),
    Case("chunk", lambda net, y: parts(y, y.chunk(2, 1), 1)),
    Case("tensor_split", lambda net, y: parts(y, y.tensor_split(2, 1), 1)),
    Case("hsplit", lambda net, y: parts(y, aten.hsplit(y, [1, 2]), 1)),
    Case("vsplit", lambda net, y: parts(y, aten.vsplit(y, [1]), 0)),
    Case("dsplit", lambda net, y: (lambda a, b: a * b)(*y.dsplit(2)), free="some"),
    Case("slice", lambda net, y: y[:, 1:]),
    Case("select", lambda net, y: y * y.select(1, 0).unsqueeze(1)),
    Case("narrow", lambda net, y: aten.narrow(y, 1, 1, 2)),
    Case("squeeze", lambda net, y: y.unsqueeze(2).squeeze(2)),
    Case("squeeze in place", lambda net, y: y.relu().unsqueeze_(1).squeeze_(1)),
    Case("squeeze copy", lambda net, y: aten.squeeze_copy(y.unsqueeze(1), 1)),
    Case("movedim", lambda net, y: aten.movedim(y, -1, 0), out=0),
    Case("flip", lambda net, y: y.flip(1) + y.relu().flip(0, 1)),
    Case("roll", lambda net, y: y.roll(2, 1)),
    Case("swapaxes", lambda net, y: aten.swapdims(aten.swapaxes(y, 1, 2), 1, 2)),
    Case("swapaxes in place", lambda net, y: aten.swapdims_(aten.swapaxes_(y.relu(), 1, 2), 1, 2)),
    Case("matrix transposes", lambda net, y: aten.adjoint(aten.mH(aten.mT(y))), out=1),
    Case("numpy's transpose", lambda net, y: aten.numpy_T(y.sum(0)), out=0),
    Case("rot90", lambda net, y: aten.rot90(y, 1, [0, 1])),
    Case("diagonal", lambda net, y: aten.diagonal(y, 0, 0, 1), out=0),
    Case("repeat", lambda net, y: y.repeat(1, 2, 1)),
    Case("tile", lambda net, y: aten.tile(y, [1, 2, 2])),
    Case("repeat_interleave", lambda net, y: y.repeat_interleave(2, -1)),
    Case("expand", lambda net, y: y + net.w.expand(y.shape[0], y.shape[1], -1), weight("c")),
    Case("broadcast_to", lambda net, y: aten.broadcast_to(y.sum(1, keepdim=True), list(y.shape))),
    Case("expand_as", lambda net, y: y * y.sum(-1, keepdim=True).expand_as(y)),
    Case("shape of another", lambda net, y: aten.reshape_as(aten.view_as(y.flatten(0, 1), y), y)),
    Case("cat", lambda net, y: torch.cat([y.relu(), (-y).relu()], -1)),
    Case("cat, by other names", lambda net, y: aten.concatenate([aten.concat([y.relu(), y], 1), y], 1)),
    Case("stack", lambda net, y: torch.stack([y, y * 2], 1).sum(1)),
    Case("pad", lambda net, y: aten.pad(y.relu(), [0, 0, 1, 2])),
    Case("constant pad", lambda net, y: aten.constant_pad_nd(y, [0, 0, 1, 2], 0.0)),
    Case("pixel shuffle", lambda net, y: F.pixel_shuffle(y.relu(), 2), layout="image", free="some"),
    Case("pixel unshuffle", lambda net, y: F.pixel_unshuffle(y.repeat(1, 1, 2, 2), 2), layout="image"),
    Case("channel shuffle", lambda net, y: F.channel_shuffle(y.relu(), 4), layout="image", free="some"),
    Case("im2col", lambda net, y: F.unfold(y, 2), layout="image"),
    Case(
        "col2im",
        lambda net, y: F.fold(F.unfold(y, 2), y.shape[2:], 2),
        layout="image",
    ),
    Case("unfold", lambda net, y: y.unfold(2, 2, 1).unfold(3, 2, 1).sum((-1, -2)), layout="image"),
    Case("unfold of channels", lambda net, y: y.unfold(1, 3, 1).sum(-1), layout="image", free="none"),
    Case(
        "grid sample",
        lambda net, y: F.grid_sample(y, net.g.expand(len(y), -1, -1, -1), align_corners=False),
        lambda s: {"g": torch.rand(1, 3, 4, 2) * 2 - 1},
        "image",
    ),
    Case(
        "grid sample, by its own name",
        lambda net, y: aten.grid_sampler_2d(y, net.g.expand(len(y), -1, -1, -1), 0, 0, False),
        lambda s: {"g": torch.rand(1, 3, 4, 2) * 2 - 1},
        "image",
    ),
    Case(
        "grid sample of volumes",
        lambda net, y: aten.grid_sampler_3d(y, net.g.expand(len(y), -1, -1, -1, -1), 0, 0, False),
        lambda s: {"g": torch.rand(1, 2, 3, 2, 3) * 2 - 1},
        "volume",
    ),
    Case("strides", lambda net, y: y.contiguous().as_strided((y.shape[0], 2, 4), (8, 4, 1)), free="none", strict=True),
    Case(
        "strides in place",
        lambda net, y: y.contiguous().clone().as_strided_((y.shape[0], 2, 4), (8, 4, 1)),
        free="none",
        strict=True,
    ),
    Case("complex", lambda net, y: torch.view_as_real(complex_of(y)).sum(-1)),
    Case("real and imaginary", lambda net, y: aten.real(complex_of(y)) - aten.imag(aten.conj(complex_of(y)))),
    Case("made by complex", lambda net, y: torch.view_as_real(torch.complex(y, y.relu())).sum(-1)),
    Case("polar", lambda net, y: torch.polar(y.abs(), y).real),
    Case(
        "zeros, ones, full",
        lambda net, y: (
            y * torch.ones(1, dtype=y.dtype)
            + torch.zeros_like(y)
            + y * torch.full((1, 1), 3.0, dtype=y.dtype)
            + y.new_zeros(1, 1, 1)
        ),
    ),
    Case("zeros in the code", lambda net, y: torch.cat([y, torch.zeros(y.shape[0], 2, y.shape[2], dtype=y.dtype)], 1)),
    Case("new ones", lambda net, y: y * y.new_ones(y.shape[1], 1) + y * y.new_full((1, 1), 2.0)),
    Case("like another", lambda net, y: y * torch.ones_like(y) + y * torch.full_like(y, 2.0)),
    Case(
        "random",
        lambda net, y: (
            y * (torch.rand_like(y) < 2).to(y.dtype) * (torch.randn_like(y) < 99) * torch.empty_like(y).fill_(1.0)
        ),
    ),
    Case("bernoulli", lambda net, y: y * torch.bernoulli(torch.ones_like(y))),
    Case("bernoulli in place", lambda net, y: y * torch.empty_like(y).bernoulli_(1.0)),
    Case("counted", lambda net, y: y * torch.arange(1, y.shape[1] + 1, dtype=y.dtype)[:, None]),
    Case(
        "counted evenly",
        lambda net, y: (
            y
            * torch.linspace(0, 1, y.shape[1], dtype=y.dtype)[:, None]
            * torch.logspace(0, 1, y.shape[1], dtype=y.dtype)[:, None]
        ),
    ),
    Case("embedding", lambda net, y: y * F.embedding(torch.arange(y.shape[1]) % 3, net.w), weight(4, "c")),
    Case("index", lambda net, y: y[:, torch.tensor([1, 0, 1])]),
    Case("index of a table", lambda net, y: y * net.w[torch.arange(y.shape[1]) % 3], weight(4, "c")),
    Case("getitem", lambda net, y: y.sort(1)[0]),
    Case("filled", lambda net, y: aten.fill(y, 2.0) * y + aten.zero(y) + y.clone().zero_()),
    Case("prelu", lambda net, y: net.f(y), lambda s: {"f": nn.PReLU(s.c)}, "image"),
    Case("in place on a copy", lambda net, y: torch.zeros_like(y).copy_(y)),
    Case("copy", lambda net, y: aten.copy(torch.zeros_like(y), y)),
    Case(
        "masked product of weights", lambda net, y: F.linear(y, net.w * net.g), lambda s: {"w": p(5, s.c), "g": p(5, 1)}
    ),
)
