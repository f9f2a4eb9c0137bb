"""Ways in which real architectures use the operations: attention, windows, gates, experts, scans.

Proof by cutting: a net whose parameters are cut by hand gives the same as the net in which the groups are zero. Sizes
are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geta_core.graph import GroupGraph
from tests.geta_core.graph.nets import gap
from tests.geta_core.graph.operators import Case, Sizes
from tests.geta_core.graph.operators.case import chosen, cut, results, together, zeroed

HEAD = 4
"""Width of an attention head."""


@dataclass(frozen=True)
class Idiom:
    """A part of an architecture and the number of groups that its tensors must have."""

    case: Case
    groups: Callable[[Sizes], dict[str, int]]


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.5)


def apart(net: Any, *names: str) -> list[nn.Module]:
    return [getattr(net, name) for name in names]


def qkv(s: Sizes) -> dict[str, Any]:
    return {"q": nn.Linear(s.c, 2 * s.c), "k": nn.Linear(s.c, 2 * s.c), "v": nn.Linear(s.c, 2 * s.c)}


def in_heads(z: Tensor) -> Tensor:
    return z.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def merged(z: Tensor) -> Tensor:
    return z.transpose(1, 2).flatten(2)


def fused(net: Any, y: Tensor) -> Tensor:
    q, k, v = net.qkv(y).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4).unbind(0)
    return merged((q @ k.mT / 2).softmax(-1) @ v)


def biased(net: Any, y: Tensor) -> Tensor:
    """A bias for each head and each distance between tokens, looked up in a table."""
    q, k, v = (in_heads(f(y)) for f in apart(net, "q", "k", "v"))
    bias = net.table[net.distance.flatten()].view(y.shape[1], y.shape[1], -1).permute(2, 0, 1)
    return merged((q @ k.mT / 2 + bias.unsqueeze(0)).softmax(-1) @ v)


def distances(s: Sizes) -> dict[str, Any]:
    place = torch.arange(s.t)
    return {**qkv(s), "table": p(2 * s.t - 1, 2 * s.c // HEAD), "distance": place[:, None] - place + s.t - 1}


def half_turned(z: Tensor) -> Tensor:
    a, b = z.chunk(2, -1)
    return torch.cat([-b, a], -1)


def rotary(net: Any, y: Tensor) -> Tensor:
    q, k, v = (in_heads(f(y)) for f in apart(net, "q", "k", "v"))
    q, k = (z * net.cos + half_turned(z) * net.sin for z in (q, k))
    return merged(F.scaled_dot_product_attention(q, k, v))


def angles(s: Sizes) -> dict[str, Any]:
    turn = torch.arange(s.t)[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
    return {**qkv(s), "cos": turn.cos().double(), "sin": turn.sin().double()}


def repeated(net: Any, y: Tensor) -> Tensor:
    """Each head of keys and values serves several heads of queries, by expand and reshape."""
    q, k, v = (in_heads(f(y)) for f in apart(net, "q", "k", "v"))
    count = q.shape[1] // k.shape[1]
    k, v = (z[:, :, None].expand(-1, -1, count, -1, -1).flatten(1, 2) for z in (k, v))
    return merged(F.scaled_dot_product_attention(q, k, v, scale=0.5))


def one_for_all(net: Any, y: Tensor) -> Tensor:
    """One head of keys and values: its places may go one by one, with those of every head of queries."""
    k, v = net.k(y).unsqueeze(1), net.v(y).unsqueeze(1)
    q = net.q(y).unflatten(-1, (-1, k.shape[-1])).transpose(1, 2)
    return merged(F.scaled_dot_product_attention(q, k.expand_as(q), v.expand(-1, q.shape[1], -1, -1), scale=0.5))


def grouped(s: Sizes) -> dict[str, Any]:
    return {"q": nn.Linear(s.c, 2 * s.c), "k": nn.Linear(s.c, s.c), "v": nn.Linear(s.c, s.c)}


def multi_query(s: Sizes) -> dict[str, Any]:
    return {"q": nn.Linear(s.c, 2 * s.c), "k": nn.Linear(s.c, HEAD), "v": nn.Linear(s.c, HEAD)}


def crossing(net: Any, y: Tensor) -> Tensor:
    memory = net.read(y[:, 1:].flip(1)).relu()
    q, k, v = in_heads(net.q(y)), in_heads(net.k(memory)), in_heads(net.v(memory))
    return merged(F.scaled_dot_product_attention(q, k, v, scale=0.5))


def remembered(s: Sizes) -> dict[str, Any]:
    sizes = {"k": nn.Linear(6, 2 * s.c), "v": nn.Linear(6, 2 * s.c)}
    return {"read": nn.Linear(s.c, 6), "q": nn.Linear(s.c, 2 * s.c), **sizes}


def tokens_first(net: Any, y: Tensor) -> Tensor:
    """Class and distillation tokens before the others, and positions for all."""
    first = torch.cat([net.one, net.two], 1).expand(y.shape[0], -1, -1)
    z = net.mlp((torch.cat([first, y], 1) + net.place).relu())
    return torch.cat([z[:, :2].mean(1, keepdim=True), z[:, 2:]], 1)


def windows(net: Any, y: Tensor) -> Tensor:
    """Windows of 2 x 2 places: shifted, cut, mixed by attention, put together, shifted back."""
    z = y.permute(0, 2, 3, 1).roll((-1, -1), (1, 2))
    b, h, w, _ = z.shape
    z = z.reshape(b, h // 2, 2, w // 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b * (h // 2) * (w // 2), 4, -1)
    q, k, v = (in_heads(f(z)) for f in apart(net, "q", "k", "v"))
    z = merged(F.scaled_dot_product_attention(q, k, v))
    z = z.view(b, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
    return z.roll((1, 1), (1, 2)).permute(0, 3, 1, 2)


def patches(net: Any, y: Tensor) -> Tensor:
    """Four neighbours become the channels of one place."""
    z = y.relu().permute(0, 2, 3, 1)
    z = torch.cat([z[:, 0::2, 0::2], z[:, 1::2, 0::2], z[:, 0::2, 1::2], z[:, 1::2, 1::2]], -1)
    return net.mix(z).relu().permute(0, 3, 1, 2)


def experts(net: Any, y: Tensor) -> Tensor:
    """The two best of three experts, weighted by the gate."""
    share = net.gate(y).softmax(-1)
    best = share.topk(2, -1)
    weight = torch.zeros_like(share).scatter(-1, best.indices, best.values)
    parts = [weight[..., i : i + 1] * expert(y) for i, expert in enumerate(net.experts)]
    return torch.stack(parts).sum(0)


def of_experts(s: Sizes) -> dict[str, Any]:
    made = (nn.Sequential(nn.Linear(s.c, 6), nn.GELU(), nn.Linear(6, s.c)) for _ in range(3))
    return {"gate": nn.Linear(s.c, 3), "experts": nn.ModuleList(made)}


def scan(net: Any, y: Tensor) -> Tensor:
    """A selective state space: h = exp(dt a) h + dt b x, and c h is read, step by step."""
    x, gate = net.into(y).chunk(2, -1)
    step = F.softplus(net.step(x))
    b, c = net.b(x), net.c(x)
    decay = -net.a.exp()
    state = torch.zeros_like(x[:, 0]).unsqueeze(-1) * decay
    found = []
    for i in range(y.shape[1]):
        state = (step[:, i, :, None] * decay).exp() * state + (step[:, i] * x[:, i])[..., None] * b[:, i, None]
        found.append((state * c[:, i, None]).sum(-1) + net.skip * x[:, i])
    return torch.stack(found, 1) * F.silu(gate)


def of_scan(s: Sizes) -> dict[str, Any]:
    inner, states = s.c, 3
    made = {"into": nn.Linear(s.c, 2 * inner), "step": nn.Linear(inner, inner), "b": nn.Linear(inner, states)}
    return {**made, "c": nn.Linear(inner, states), "a": p(inner, states), "skip": p(inner)}


def excited(net: Any, y: Tensor) -> Tensor:
    return y.relu() * net.up(net.down(y.relu().mean((2, 3), keepdim=True)).relu()).sigmoid()


def shuffled(net: Any, y: Tensor) -> Tensor:
    """Half of the channels pass, half are mixed, then the halves are dealt out in turn."""
    a, b = y.relu().chunk(2, 1)
    z = torch.cat([a, net.mix(b).relu()], 1)
    return z.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def responsive(net: Any, y: Tensor) -> Tensor:
    """Global response normalization over channels: they enter a mean, which a cut net takes over fewer."""
    size = torch.linalg.vector_norm(y, 2, (2, 3), keepdim=True)
    return y * size / (size.mean(1, keepdim=True) * (y.shape[1] / net.width) + 1e-6) + y


def pair(c: int, d: int) -> dict[str, Any]:
    return {"down": nn.Conv2d(c, d, 1), "up": nn.Conv2d(d, c, 1)}


def heads_of(*names: str, each: int = 2) -> Callable[[Sizes], dict[str, int]]:
    return lambda s: {f"{name}.weight": each * s.c // HEAD for name in names}


def none(s: Sizes) -> dict[str, int]:
    return {}


IDIOMS = (
    Idiom(Case("fused qkv", fused, lambda s: {"qkv": nn.Linear(s.c, 6 * s.c)}), heads_of("qkv")),
    Idiom(Case("relative position bias", biased, distances), lambda s: {"q.weight": s.c // 2, "v.weight": s.c // 2}),
    Idiom(Case("rotary embedding", rotary, angles), heads_of("q", "k", "v")),
    Idiom(Case("grouped queries", repeated, grouped), heads_of("q", "k", "v", each=1)),
    Idiom(Case("one head of keys", one_for_all, multi_query), lambda s: {"q.weight": HEAD, "v.weight": HEAD}),
    Idiom(Case("cross-attention", crossing, remembered), lambda s: {**heads_of("q", "k", "v")(s), "read.weight": 6}),
    Idiom(
        Case(
            "class and distillation tokens",
            tokens_first,
            lambda s: {"one": p(1, 1, s.c), "two": p(1, 1, s.c), "place": p(1, s.t + 2, s.c), "mlp": nn.Linear(s.c, 6)},
        ),
        lambda s: {"mlp.weight": 6},
    ),
    Idiom(Case("shifted windows", windows, qkv, "image"), heads_of("q", "k", "v")),
    Idiom(
        Case("merged patches", patches, lambda s: {"mix": nn.Linear(4 * s.c, 6)}, "image"), lambda s: {"mix.weight": 6}
    ),
    Idiom(Case("mixture of experts", experts, of_experts), lambda s: {f"experts.{i}.0.weight": 6 for i in range(3)}),
    Idiom(Case("state-space scan", scan, of_scan), lambda s: {"into.weight": s.c, "a": s.c, "skip": s.c}),
    Idiom(Case("squeeze and excitation", excited, lambda s: pair(s.c, 4), "image"), lambda s: {"down.weight": 4}),
    Idiom(Case("dealt channels", shuffled, lambda s: {"mix": nn.Conv2d(s.c // 2, s.c // 2, 1)}, "image", "some"), none),
    Idiom(Case("response normalization", responsive, lambda s: {"width": s.c}, "image"), none),
)
even = st.sampled_from([4, 6])
sizes = st.builds(Sizes, t=st.integers(4, 6), h=even, w=even, c=st.sampled_from([8, 12]))


def count(graph: GroupGraph, name: str) -> int:
    return sum(g.pinned is None and any(m.name == name and m.dim == 0 for m in g.members) for g in graph.groups)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_removal() -> None:
    cases = [idiom.case for idiom in IDIOMS]

    @settings(max_examples=2, deadline=None, phases=[Phase.generate])
    @given(given=sizes, seed=st.integers(0, 2**16))
    def proved(given: Sizes, seed: int) -> None:
        torch.manual_seed(seed)
        net, inputs, graph = together(cases, given)
        for position, idiom in enumerate(IDIOMS):
            stem = sum(
                len(m.indices)
                for g in graph.groups
                for m in g.members
                if g.pinned is None and m.name == f"nets.{position}.stem.weight" and m.dim == 0
            )
            assert stem == (0 if idiom.case.free == "none" else given.c), f"{idiom.case.name}: {stem} inputs"
            for name, wanted in idiom.groups(given).items():
                found = count(graph, f"nets.{position}.{name}")
                assert found == wanted, f"{idiom.case.name}: {found} groups of {name}, not {wanted}"
        dead = chosen(graph, torch.Generator().manual_seed(seed)).tolist()
        gone = [group for group, flag in zip(graph.groups, dead, strict=False) if flag]
        whole = zeroed(net, gone)
        for case, a, b in zip(cases, results(whole, inputs), results(cut(whole, gone), inputs), strict=True):
            assert gap([a], [b]) <= 1e-10, f"{case.name}: cut is not what is zeroed"

    proved()
