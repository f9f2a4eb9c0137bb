"""One operation between two linear maps of random sizes, and the proof by cutting the parameters by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph import ExampleInputs, GroupGraph, capture

BATCH = 3


@dataclass(frozen=True)
class Sizes:
    """Sizes of one example: tokens or places, and channels (a multiple of 4, at least 8)."""

    t: int
    h: int
    w: int
    c: int


Body = Callable[[Any, Tensor], Tensor]
Parts = Callable[[Sizes], dict[str, nn.Module | Tensor | int]]


@dataclass(frozen=True)
class Case:
    """An operation on [N, t, c] ("tokens"), [N, c, t] ("signal"), [N, c, h, w] ("image") or [N, c, 2, h, w] ("volume").

    ``free`` says how many of the c channels may go: "all", "some" (by blocks) or "none"; then a proof that they have
    to stay is part of the test, unless the rule is stricter than it would have to be (``strict``).
    """

    name: str
    body: Body
    parts: Parts = field(default=lambda s: {})
    layout: str = "tokens"
    free: str = "all"
    strict: bool = False
    out: int | None = None
    """Dimension of the result that holds its channels, where it is not that of the layout."""


class Between(nn.Module):
    """A map from 5 inputs to c channels, the operation, and a map to 2 outputs.

    The last map is fixed, so that a channel may go only if the operation leaves it at zero; or it is ``learned``, and
    its rows can be set to zero with the channels.
    """

    def __init__(self, case: Case, sizes: Sizes, learned: bool = False) -> None:
        super().__init__()
        self.case, self.stem = case, nn.Linear(5, sizes.c)
        for name, part in case.parts(sizes).items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.dim = case.out if case.out is not None else -1 if case.layout == "tokens" else 1
        with torch.no_grad():
            width = self.inner(torch.randn(BATCH, *_places(case, sizes), 5)).shape[self.dim]
        head = torch.randn(width, 2)
        self.head: Tensor
        if learned:
            self.head = nn.Parameter(head)
        else:
            self.register_buffer("head", head)

    def inner(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.case.body(self, y if self.case.layout == "tokens" else y.movedim(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).movedim(self.dim, -1) @ self.head


def _places(case: Case, sizes: Sizes) -> tuple[int, ...]:
    layouts = {"tokens": (sizes.t,), "signal": (sizes.t,), "image": (sizes.h, sizes.w), "volume": (2, sizes.h, sizes.w)}
    return layouts[case.layout]


class Together(nn.Module):
    """Several such nets side by side: captured once, and independent of each other."""

    def __init__(self, cases: Sequence[Case], sizes: Sizes, learned: bool = False) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Between(case, sizes, learned) for case in cases)

    def forward(self, *xs: Tensor) -> list[Tensor]:
        return [net(x) for net, x in zip(self.nets, xs, strict=True)]


def together(
    cases: Sequence[Case], sizes: Sizes, learned: bool = False
) -> tuple[Together, tuple[Tensor, ...], GroupGraph]:
    """The nets in float64, their inputs and their groups."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net = Together(cases, sizes, learned).eval()
    finally:
        torch.set_default_dtype(before)
    inputs = tuple(torch.randn(BATCH, *_places(case, sizes), 5, dtype=torch.float64) for case in cases)
    config = geta.CompressionConfig(weight_bits=None)
    return net, inputs, GroupGraph(capture(net, ExampleInputs.of(inputs)), config, net)


def stem_groups(graph: GroupGraph, position: int) -> tuple[list[geta.Group], list[geta.Group]]:
    """The groups of a net's channels that may go, and those that may not."""
    name = f"nets.{position}.stem.weight"
    found = [g for g in graph.groups if any(m.name == name and m.dim == 0 for m in g.members)]
    return [g for g in found if g.pinned is None], [g for g in found if g.pinned is not None]


def chosen(graph: GroupGraph, generator: torch.Generator) -> Tensor:
    """Bool [groups that may go]: a random half of each family, never all of it."""
    family = graph.prunable_families()
    dead = torch.zeros(len(family), dtype=torch.bool)
    for index in family.unique():
        members = torch.nonzero(family == index).flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        dead[order[: min(max(1, len(members) // 2), len(members) - 1)]] = True
    return dead


def zeroed(net: nn.Module, groups: Iterable[geta.Group]) -> nn.Module:
    """A copy in which the rows that the groups own are zero."""
    new = copy.deepcopy(net)
    tensors = dict(new.named_parameters())
    with torch.no_grad():
        for member in (m for group in groups for m in group.members if m.role == "PRODUCE"):
            tensors[member.name].index_fill_(member.dim, torch.tensor(member.indices), 0.0)
    return new


def cut(net: nn.Module, groups: Iterable[geta.Group]) -> nn.Module:
    """A copy without the groups' indices."""
    gone: dict[tuple[str, int], set[int]] = {}
    for member in (m for group in groups for m in group.members):
        gone.setdefault((member.name, member.dim), set()).update(member.indices)
    return without(net, gone)


def without(net: nn.Module, gone: Mapping[tuple[str, int], Iterable[int]]) -> nn.Module:
    """A copy whose parameters and buffers are cut by hand: for each name and dimension the indices that go."""
    new = copy.deepcopy(net)
    for (name, dim), indices in gone.items():
        owner, leaf = new.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        held = getattr(owner, leaf)
        keep = torch.tensor([i for i in range(held.shape[dim]) if i not in indices])
        small = held.detach().index_select(dim, keep)
        if isinstance(held, nn.Parameter):
            setattr(owner, leaf, nn.Parameter(small))
        else:
            owner.register_buffer(leaf, small)
    return new


def share(net: Any, y: Tensor) -> float:
    """Share of the channels of a whole net, ``net.width``, that a value has: a mean over fewer is the sum over n."""
    return float(y.shape[-1] / net.width)


def results(net: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        found: list[Tensor] = net(*inputs)
    return found
