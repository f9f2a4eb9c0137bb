"""Heads that share a parameter, parts of a head, and sizes that depend on values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import geta_core as geta
from geta_core.prepared import Prepared
from tests.geta_core.graph.nets import (
    Net,
    assert_sound,
    choose,
    double,
    gap,
    parameter,
    prepared64,
    prunable,
    run,
    token_net,
    tokens,
)


def split(net: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [N, 3, 7, 4] of three heads; the number of heads follows the weights."""
    q, k, v = net.qkv(x).unflatten(2, (3, -1, 4)).permute(2, 0, 3, 1, 4)
    return q, k, v


def joined(net: Any, scores: Tensor, v: Tensor) -> Tensor:
    return net.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def before(net: Any, x: Tensor) -> Tensor:
    """Relative positions: every head multiplies its queries with one table, before they meet the keys."""
    q, k, v = split(net, x)
    places = torch.einsum("nhqd,qkd->nhqk", q, net.table)
    return joined(net, q @ k.mT + places, v)


def after(net: Any, x: Tensor) -> Tensor:
    """The same, the other way round."""
    q, k, v = split(net, x)
    scores = q @ k.mT
    return joined(net, scores + torch.einsum("qkd,nhqd->nhqk", net.table, q), v)


def normalized(net: Any, x: Tensor) -> Tensor:
    """And with a norm inside each head."""
    q, k, v = split(net, x)
    q = net.norm(q)
    return joined(net, q @ k.mT + torch.einsum("nhqd,qkd->nhqk", q, net.table), v)


def scaled(net: Any, x: Tensor) -> Tensor:
    """A norm of the root of the mean square inside each head, written out, whose scale all heads share."""
    q, k, v = split(net, x)
    q = net.scale * (q * (q.square().mean(-1, keepdim=True) + 1e-6).rsqrt())
    return joined(net, q @ k.mT, v)


def biased(net: Any, x: Tensor) -> Tensor:
    """A bias with a row for each head, of which all indices go with their head."""
    q, k, v = split(net, x)
    return joined(net, (q + net.rows.unsqueeze(1)) @ k.mT, v)


def rotated_whole(net: Any, x: Tensor) -> Tensor:
    """What is left of a head beside the part that is rotated: nothing."""
    q, k, v = split(net, x)
    q = torch.cat([torch.cat([-q[..., 2:4], q[..., :2]], -1), q[..., 4:]], -1)
    return joined(net, q @ k.mT, v)


def weighted_by_the_input(net: Any, x: Tensor) -> Tensor:
    """Two results of a value without a label; the heads are counted in the code."""
    q, k, v = net.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    first, rest = torch.split(x.sum(-1), 4, 1)
    return joined(net, q @ k.mT + torch.cat([2 * first, rest], 1)[:, None, None, :], v)


def no_class_token(net: Any, x: Tensor) -> Tensor:
    """Positions before the first: none."""
    q, k, v = split(net, x)
    return joined(net, torch.cat([q[:, :, :0], 2 * q[:, :, 0:]], 2) @ k.mT, v)


def in_the_batch(net: Any, x: Tensor) -> Tensor:
    """Heads that share a dimension with the batch, of which a slice takes all."""
    q, k, v = net.qkv(x).transpose(1, 2).chunk(3, 1)
    q, k, v = (each.reshape(x.shape[0] * 3, 4, -1) for each in (q, k, v))
    scores = (q.mT @ k).reshape(-1, 7, 7)[:, :7, 0:].reshape(-1, 7, 7)
    return net.proj((v @ scores.softmax(-1).mT).reshape(x.shape[0], -1, 7).transpose(1, 2))


def padded(net: Any, x: Tensor) -> Tensor:
    """Linear attention, with the sum of the weights as one more column of the values."""
    q, k, v = split(net, x)
    mixed = q.relu() @ (k.relu().mT @ nn.functional.pad(v, (0, 1), value=1.0))
    return net.proj((mixed[..., :-1] / (mixed[..., -1:] + 0.1)).transpose(1, 2).flatten(2))


def grouped(net: Any, x: Tensor) -> Tensor:
    """Queries, keys and values of each head, and three groups of a convolution that make more of them."""
    plain = net.qkv(x)
    q, k, v, *more = (
        each for part in (plain, net.mix(plain.mT).mT) for each in part.unflatten(2, (3, -1, 4)).permute(2, 0, 3, 1, 4)
    )
    return joined(net, q @ k.mT, v) + joined(net, more[0] @ more[1].mT, more[2])


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "table before": before,
    "table after": after,
    "table and norm": normalized,
    "scale shared by all heads": scaled,
    "bias of each head": biased,
    "empty part of a head": rotated_whole,
    "parts of the input": weighted_by_the_input,
    "empty row of tokens": no_class_token,
    "heads in the batch": in_the_batch,
    "column of ones": padded,
    "groups of a convolution": grouped,
}


def attention(body: Callable[[Any, Tensor], Tensor]) -> Net:
    held = {"table": parameter(7, 7, 4), "scale": parameter(4), "rows": parameter(3, 4), "norm": nn.LayerNorm(4)}
    held["mix"] = nn.Conv1d(36, 36, 3, padding=1, groups=9)
    return token_net(body, qkv=nn.Linear(6, 36), proj=nn.Linear(12, 6), **held)


def heads(prepared: Prepared) -> list[tuple[int, ...]]:
    """Which columns of the last projection of an attention go together."""
    found = []
    for group in prepared.graph.groups:
        if group.pinned is None:
            found += [member.indices for member in group.members if (member.name, member.dim) == ("proj.weight", 1)]
    return sorted(found)


@pytest.mark.parametrize("name", BODIES)
def test_every_head_can_go_whole(name: str) -> None:
    prepared = prepared64(attention(BODIES[name]), tokens())
    assert heads(prepared) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    prepared.zero_(choose(prepared, 1))
    compressed = geta.finish(prepared)
    assert ("proj.weight", 1) in compressed.keep
    assert not {("table", 2), ("scale", 0), ("rows", 1)} & compressed.keep.keys()
    x = double(tokens())
    assert gap(run(prepared.model, x), run(compressed.model, x)) <= 1e-10


def beside(net: Any, x: Tensor) -> Tensor:
    """The heads that a grouped convolution makes of channels that a norm reduces."""
    q, k, v = (part(x.mT).mT.unflatten(2, (3, -1)).transpose(1, 2) for part in (net.q, net.k, net.v))
    return joined(net, q @ k.mT, v)


def beside_a_table(net: Any, x: Tensor) -> Tensor:
    """And a table of relative positions, which loses the index, too."""
    q, k, v = (part(x.mT).mT.unflatten(2, (3, -1)).transpose(1, 2) for part in (net.q, net.k, net.v))
    return joined(net, q @ k.mT + torch.einsum("nhqd,qkd->nhqk", q, net.table), v)


def reduced(net: Any, x: Tensor) -> Tensor:
    """The same of heads that a norm reduces over all of them: they could only go with their group."""
    q, k, v = net.mix(net.norm(net.qkv(x)).mT).mT.unflatten(2, (3, 3, -1)).permute(2, 0, 3, 1, 4)
    return joined(net, q @ k.mT, v)


@pytest.mark.parametrize("body", [beside, beside_a_table, reduced])
def test_heads_of_a_grouped_convolution_that_reads_no_heads_lose_the_same_index_each(body: Any) -> None:
    parts: dict[str, Any] = {name: nn.Conv1d(6, 12, 1, groups=3) for name in "qkv"}
    parts |= {
        "table": parameter(7, 7, 4),
        "qkv": nn.Linear(6, 36),
        "norm": nn.LayerNorm(36),
        "mix": nn.Conv1d(36, 36, 1, groups=9),
    }
    prepared = prepared64(token_net(body, proj=nn.Linear(12, 6), **parts), tokens())
    assert heads(prepared) == [(0, 4, 8), (1, 5, 9), (2, 6, 10), (3, 7, 11)]
    prepared.zero_(choose(prepared, 1))
    compressed = geta.finish(prepared)
    assert {("mix.weight" if body is reduced else "q.weight", 0), ("proj.weight", 1)} <= compressed.keep.keys()
    assert (("table", 2) in compressed.keep) == (body is beside_a_table)
    x = double(tokens())
    assert gap(run(prepared.model, x), run(compressed.model, x)) <= 1e-10


FACING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mul": torch.mul, "add": torch.add, "atan2": torch.atan2}


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(2, 4),
    size=st.integers(2, 4),
    rows=st.booleans(),
    first=st.booleans(),
    name=st.sampled_from(sorted(FACING)),
    seed=st.integers(0, 99),
)
def test_a_parameter_that_heads_share_stays_and_one_with_a_row_for_each_is_cut(
    count: int, size: int, rows: bool, first: bool, name: str, seed: int
) -> None:
    """Any operation of queries and a parameter, element by element: heads go whole, and zeroed is the same as cut."""

    def body(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(x).unflatten(2, (3, -1, size)).permute(2, 0, 3, 1, 4)
        shared = net.shared.unsqueeze(1) if rows else net.shared
        q = FACING[name](*((shared, q) if first else (q, shared)))
        return joined(net, q @ k.mT, v)

    torch.manual_seed(seed)
    wide = count * size
    shared = parameter(count, size) if rows else parameter(size)
    net = token_net(body, qkv=nn.Linear(6, 3 * wide), proj=nn.Linear(wide, 6), shared=shared)
    prepared = prepared64(net, tokens())
    assert heads(prepared) == [tuple(range(i * size, (i + 1) * size)) for i in range(count)]
    prepared.zero_(choose(prepared, 1, seed))
    compressed = geta.finish(prepared)
    assert ("proj.weight", 1) in compressed.keep
    assert (("shared", 0) in compressed.keep) == rows
    assert ("shared", 1) not in compressed.keep
    x = double(tokens())
    assert gap(run(prepared.model, x), run(compressed.model, x)) <= 1e-10


def test_heads_that_share_a_convolution_and_a_norm() -> None:
    """The bias of the norm is left of a zero head, so that the projection is zeroed where it reads it."""

    def body(net: Any, x: Tensor) -> Tensor:
        pooled = [net.norm(net.pool(part.flatten(0, 1).mT).mT) for part in split(net, x)]
        q, k, v = (part.unflatten(0, (x.shape[0], -1)) for part in pooled)
        return joined(net, q @ k.mT, v + q)

    net = attention(body)
    net.pool = nn.Conv1d(4, 4, 3, padding=1, groups=4)
    prepared = prepared64(net, tokens())
    assert heads(prepared) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    group = prunable(prepared, "proj.weight", 1)[0]
    assert ("proj.weight", "PRODUCE") in {(member.name, member.role) for member in group.members}
    assert not prunable(prepared, "pool.weight")
    assert_sound(prepared, tokens())


COPIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "repeat": lambda mask, count: mask.repeat(1, count, 1),
    "repeat_interleave": lambda mask, count: mask.repeat_interleave(count, 1),
    "expand": lambda mask, count: mask.expand(-1, count, -1),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("literal", [False, True])
def test_what_is_repeated_for_every_head_is_repeated_for_those_that_stay(name: str, literal: bool) -> None:
    """A mask of the tokens, once for each head of each example, by a number of the code or by that of the heads."""

    def body(net: Any, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(0, 1) for part in split(net, x))
        mask = COPIES[name](x.sum(-1).sigmoid().unsqueeze(1), 3 if literal else len(q) // x.shape[0])
        scores = (q @ k.mT) * mask.reshape(-1, 1, mask.shape[-1])
        return net.proj((scores.softmax(-1) @ v).unflatten(0, (x.shape[0], -1)).transpose(1, 2).flatten(2))

    prepared = prepared64(attention(body), tokens())
    assert heads(prepared) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    prepared.zero_(choose(prepared, 1))
    compressed = geta.finish(prepared)
    assert ("proj.weight", 1) in compressed.keep
    assert compressed.report.native != literal
    x = double(tokens())
    assert gap(run(prepared.model, x), run(compressed.model, x)) <= 1e-10


def test_a_shared_parameter_is_cut_where_nothing_makes_its_rows_whole() -> None:
    """Without keys, the same index goes from every row, and from the parameter."""

    def body(net: Any, x: Tensor) -> Tensor:
        return torch.einsum("nthd,de->nthe", net.wide(x).unflatten(2, (3, 4)), net.table).flatten(2)

    prepared = prepared64(token_net(body, out=15, wide=nn.Linear(6, 12), table=parameter(4, 5)), tokens())
    found = [
        member.indices
        for group in prepared.graph.groups
        for member in group.members
        if group.pinned is None and (member.name, member.dim) == ("wide.weight", 0)
    ]
    assert sorted(found) == [(i, i + 4, i + 8) for i in range(4)]


def scanned(net: Any, x: Tensor) -> Tensor:
    """A recurrence over tokens whose results are written into a value, one by one."""
    y, state = net.wide(x), torch.zeros_like(net.wide(x)[:, 0])
    result = torch.zeros_like(y)
    for place in range(y.shape[1]):
        state = torch.tanh(state * net.decay) + y[:, place]
        result[:, place] = state
    return result


def shifted(net: Any, x: Tensor) -> Tensor:
    """Like it, over what was there before."""
    y = net.wide(x)
    result = y.relu()
    result[:, 1:] = y[:, :-1] * net.decay
    return result


@pytest.mark.parametrize("body", [scanned, shifted])
def test_values_written_token_by_token(body: Callable[[Any, Tensor], Tensor]) -> None:
    net = token_net(body, out=9, wide=nn.Linear(6, 9), decay=parameter(9))
    prepared = prepared64(net, tokens())
    assert len([group for group in prepared.graph.groups if group.pinned is None]) == 6 + 9
    prepared.zero_(choose(prepared, 1))
    x = double(tokens())
    assert gap(run(prepared.model, x), run(geta.finish(prepared).model, x)) <= 1e-10


def test_what_is_written_must_be_zero_too() -> None:
    """Else the columns that read it are zeroed as well."""

    def body(net: Any, x: Tensor) -> Tensor:
        result = net.wide(x).relu()
        result[:, 0] = torch.sigmoid(result[:, 1])
        return result

    prepared = prepared64(token_net(body, out=9, wide=nn.Linear(6, 9)), tokens())
    members = [member for group in prunable(prepared, "wide.weight") for member in group.members]
    zeroed = {member.name for member in members if member.role == "PRODUCE"}
    assert zeroed == {"wide.weight", "wide.bias", "head.weight"}
    assert prepared.num_prunable == 6 + 9
    assert_sound(prepared, tokens())


def test_concatenation_under_its_other_names() -> None:
    for join in (torch.cat, torch.concat, torch.concatenate):

        def body(net: Any, x: Tensor, join: Callable[..., Tensor] = join) -> Tensor:
            return join([net.left(x), net.right(x)], -1)

        prepared = prepared64(token_net(body, out=9, left=nn.Linear(6, 4), right=nn.Linear(6, 5)), tokens())
        assert prepared.num_prunable == 6 + 9


def test_a_size_that_values_decide_is_a_clear_error() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        counts = (x[..., 0] > 0).sum(1)
        first, second = torch.split(x.flatten(0, 1), [int(counts.sum()), x.shape[0] * 7 - int(counts.sum())])
        return torch.cat([net.one(first), net.two(second)]).unflatten(0, (-1, 7))

    net = token_net(body, one=nn.Linear(6, 6), two=nn.Linear(6, 6))
    with pytest.raises(geta.GetaError, match=r"a size in the graph .* values of a tensor|torch.export cannot trace"):
        prepared64(net, tokens())
