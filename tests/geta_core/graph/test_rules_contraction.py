"""Linear maps, products and attention: what is summed over is only cut, and only where it is exactly zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geta_core.graph.labels import are_rows
from tests.geta_core.graph.nets import (
    Body,
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

few = settings(max_examples=12)
sizes = st.integers(1, 3)
CONVOLUTIONS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


@few
@given(
    dims=sizes,
    transposed=st.booleans(),
    groups=sizes,
    inside=sizes,
    outside=sizes,
    kernel=sizes,
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
)
def test_convolutions(
    dims: int,
    transposed: bool,
    groups: int,
    inside: int,
    outside: int,
    kernel: int,
    stride: int,
    dilation: int,
    bias: bool,
) -> None:
    """A group convolution loses the same channels from every group; a depthwise one loses whole groups."""
    into, out = groups * inside, groups * outside
    padding = 0 if transposed else kernel
    options = {"groups": groups, "bias": bias, "stride": stride, "dilation": dilation, "padding": padding}
    plain = CONVOLUTIONS[dims, False]
    net = Net(
        lambda net, x: net.head(net.last(net.conv(net.stem(x).relu()).relu()).flatten(2).mean(2)),
        stem=plain(3, into, 1),
        conv=CONVOLUTIONS[dims, transposed](into, out, kernel, **options),  # type: ignore[arg-type]
        last=plain(out, 2, 1),
        head=nn.Linear(2, 2),
    )
    x = torch.randn(2, 3, *[4] * dims)
    prepared = prepared64(net, x)
    stem, conv = (len(prunable(prepared, name)) for name in ("stem.weight", "last.weight"))
    conv = len(prunable(prepared, "last.weight", 1))
    if groups > 1 and inside == outside == 1:
        assert stem == conv == groups
        assert prunable(prepared, "stem.weight") == prunable(prepared, "last.weight", 1)
    else:
        # A single channel per group is the same index in all of them: the whole input, which has to stay.
        assert stem == (inside if inside > 1 else 0)
        assert conv == (outside if outside > 1 else 0)
    assert_sound(prepared, x)


@few
@given(batch=st.lists(sizes, max_size=2), features=st.tuples(sizes, sizes, sizes), bias=st.booleans())
def test_linear(batch: list[int], features: tuple[int, int, int], bias: bool) -> None:
    one, two, three = (3 * size for size in features)
    net = nn.Sequential(nn.Linear(one, two, bias), nn.ReLU(), nn.Linear(two, three, bias), nn.Linear(three, 2))
    x = torch.randn(2, *batch, one)
    prepared = prepared64(net, x)
    assert [len(prunable(prepared, name)) for name in ("0.weight", "2.weight", "3.weight")] == [two, three, 0]
    assert_sound(prepared, x)


PRODUCTS: dict[str, tuple[Body, dict[str, tuple[int, ...]], int, int]] = {
    # name: body, parameters, features after it, groups of `w` that may go, by its outputs
    # (by its inputs where it has no others)
    "matmul": (lambda net, y: y @ net.w + net.b, {"w": (6, 5), "b": (5,)}, 5, 5),
    "matmul transposed": (lambda net, y: y @ net.w.t(), {"w": (5, 6)}, 5, 5),
    "matmul from the left": (lambda net, y: (net.w @ y.transpose(1, 2)).transpose(1, 2), {"w": (5, 6)}, 5, 5),
    "vector": (lambda net, y: y * (y @ net.w)[..., None], {"w": (6,)}, 6, 6),
    "chain of weights": (lambda net, y: y @ (net.w @ net.v), {"w": (6, 3), "v": (3, 5)}, 5, 6),
    "bmm": (lambda net, y: torch.bmm(y, net.w.expand(len(y), -1, -1)), {"w": (1, 6, 5)}, 5, 5),
    "baddbmm": (
        lambda net, y: torch.baddbmm(net.b, y, net.w.expand(len(y), -1, -1)),
        {"w": (1, 6, 5), "b": (1, 1, 5)},
        5,
        5,
    ),
    "addmm": (
        lambda net, y: torch.addmm(net.b, y.flatten(0, 1), net.w, beta=0.5, alpha=2).unflatten(0, (-1, 7)),
        {"w": (6, 5), "b": (5,)},
        5,
        5,
    ),
    "einsum": (lambda net, y: torch.einsum("btc,oc->bto", y, net.w), {"w": (5, 6)}, 5, 5),
    "einsum with ellipsis": (lambda net, y: torch.einsum("...c,oc->...o", y, net.w), {"w": (5, 6)}, 5, 5),
    "einsum without arrow": (lambda net, y: torch.einsum("btc,cz", y, net.w), {"w": (6, 5)}, 5, 5),
    "einsum of three": (
        lambda net, y: torch.einsum("btc,oc,o->bto", y, net.w, net.v),
        {"w": (5, 6), "v": (5,)},
        5,
        5,
    ),
    "weight of heads": (lambda net, y: torch.einsum("btc,hdc->bthd", y, net.w).flatten(2), {"w": (3, 2, 6)}, 6, 3),
    "slice of a weight": (lambda net, y: y @ net.w[:, :5], {"w": (6, 8)}, 5, 5),
    "two weights joined": (lambda net, y: F.linear(y, torch.cat([net.w, net.v])), {"w": (3, 6), "v": (2, 6)}, 5, 3),
    "sum of weights": (lambda net, y: F.linear(y, net.w + net.v), {"w": (5, 6), "v": (5, 6)}, 5, 5),
    "low-rank update": (
        lambda net, y: F.linear(y, net.w + net.b @ net.a),
        {"w": (5, 6), "b": (5, 2), "a": (2, 6)},
        5,
        5,
    ),
    "normalised rows": (lambda net, y: F.linear(y, F.normalize(net.w, dim=1)), {"w": (5, 6)}, 5, 5),
    "one weight twice": (lambda net, y: (y @ net.w).relu() @ net.w.t(), {"w": (6, 9)}, 6, 9),
}
OUTPUT_DIM = {
    "matmul": 1,
    "bmm": 2,
    "baddbmm": 2,
    "addmm": 1,
    "einsum without arrow": 1,
    "slice of a weight": 1,
    "one weight twice": 1,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_parameters(name: str) -> None:
    body, shapes, out, expected = PRODUCTS[name]
    net = token_net(body, out=out, **{key: parameter(*shape) for key, shape in shapes.items()})
    prepared = prepared64(net, tokens())
    assert len(prunable(prepared, "w", OUTPUT_DIM.get(name, 0))) == expected
    assert_sound(prepared, tokens())


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_products_of_activations(kind: str) -> None:
    """Channels that meet each other in a Gram matrix go one by one; a Gram matrix of them is square and stays whole."""

    def body(net: Any, y: Tensor) -> Tensor:
        flat = y.relu().flatten(2)
        gram = flat.transpose(1, 2) @ flat if kind == "columns" else flat @ flat.transpose(1, 2)
        return gram.unsqueeze(1)

    prepared = prepared64(image_net(body, out=1), image())
    assert len(prunable(prepared, "stem.weight")) == (6 if kind == "columns" else 0)
    assert_sound(prepared, image())


def test_a_flattened_gram_matrix_has_two_labels_per_index() -> None:
    """Index (i, j) of the flattened matrix goes with channel i and with channel j: all channels are one group.

    The labels must also survive what comes in between, such as an activation or a quantizer.
    """
    for between in (lambda y: y, F.gelu):

        def body(net: Any, y: Tensor, between: Any = between) -> Tensor:
            flat = y.relu().flatten(2)
            joined = between((flat @ flat.transpose(1, 2)).flatten(1))
            return net.m(joined)[:, :, None, None]

        prepared = prepared64(image_net(body, out=4, m=nn.Linear(36, 4)), image())
        (group,) = prunable(prepared, "stem.weight")
        assert {(m.name, m.dim, len(m.indices)) for m in group.members} == {
            ("stem.weight", 0, 6),
            ("stem.bias", 0, 6),
            ("m.weight", 1, 36),
        }


def attention(net: Any, y: Tensor, *, heads: int = 3, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    q, k, v = (layer(y).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


def by_hand(net: Any, y: Tensor) -> Tensor:
    q, k, v = (layer(y).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    return ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)


def by_einsum(net: Any, y: Tensor) -> Tensor:
    q, k, v = (layer(y).unflatten(-1, (3, -1)) for layer in (net.q, net.k, net.v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", scores, v).flatten(2)


def single(net: Any, y: Tensor) -> Tensor:
    q, k, v = net.q(y), net.k(y), net.v(y)
    return (q @ k.mT).softmax(-1) @ v


def linear_attention(net: Any, y: Tensor) -> Tensor:
    q, k, v = (layer(y).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    return (q @ (k.mT @ v)).transpose(1, 2).flatten(2)


ATTENTIONS: dict[str, tuple[Body, str, int]] = {
    # name: body, policy, groups of the value projection (12 features: 3 heads of 4)
    "scaled dot product": (attention, "head", 3),
    "scaled dot product, inside": (attention, "head_dim", 4),
    "causal": (lambda net, y: attention(net, y, causal=True), "head", 3),
    "causal, inside": (lambda net, y: attention(net, y, causal=True), "head_dim", 4),
    "bias per head": (lambda net, y: attention(net, y, mask=net.bias), "head", 3),
    "by hand": (by_hand, "head", 3),
    "by hand, inside": (by_hand, "head_dim", 4),
    "by einsum": (by_einsum, "head", 3),
    "by einsum, inside": (by_einsum, "head_dim", 4),
    "linear": (linear_attention, "head", 3),
    "single head": (single, "head", 12),
    "single head, inside": (single, "head_dim", 12),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name: str) -> None:
    body, heads, expected = ATTENTIONS[name]
    layers = {key: nn.Linear(6, 12) for key in "qkv"}
    net = token_net(body, out=12, **layers, bias=parameter(1, 3, 7, 7))
    prepared = prepared64(net, tokens(), heads=heads)
    assert len(prunable(prepared, "v.weight")) == expected
    together = prunable(prepared, "v.weight") == prunable(prepared, "q.weight")
    assert together == (heads == "head" and expected == 3), "heads go as a whole; inside, values go by themselves"
    assert_sound(prepared, tokens())


def test_shared_keys_and_values() -> None:
    """Grouped-query attention: a head of keys goes with all heads of queries that read it."""

    def body(net: Any, y: Tensor) -> Tensor:
        q = net.q(y).unflatten(-1, (4, -1)).transpose(1, 2)
        k, v = (layer(y).unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(2, 1) for layer in (net.k, net.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    layers = {"q": nn.Linear(6, 12), "k": nn.Linear(6, 6), "v": nn.Linear(6, 6)}
    prepared = prepared64(token_net(body, out=12, **layers), tokens())
    groups = prunable(prepared, "q.weight")
    assert len(groups) == 2
    assert {(m.name, len(m.indices)) for m in groups[0].members if m.dim == 0 and m.role == "PRODUCE"} == {
        ("q.weight", 6),
        ("q.bias", 6),
        ("k.weight", 3),
        ("k.bias", 3),
        ("v.weight", 3),
        ("v.bias", 3),
    }
    assert_sound(prepared, tokens())


@pytest.mark.parametrize("fused", [False, True])
def test_heads_of_queries_go_one_by_one_where_all_read_the_same_values(fused: bool) -> None:
    """Multi-query attention: index (h, d) of the flattened result goes with head h; value d is every head's: it stays.

    The angles, which are the same for all heads, make a head of queries a whole.
    """

    def body(net: Any, y: Tensor) -> Tensor:
        if fused:
            heads = net.q(y).unflatten(-1, (5, -1)).transpose(1, 2)
            q, k, v = heads[:, :-2], heads[:, [-2]], heads[:, [-1]]
        else:
            q, k, v = (layer(y).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
        angles = (torch.arange(7)[:, None] * torch.linspace(1, 2, 4)).cos()
        return net.m(F.scaled_dot_product_attention(q * angles, k * angles, v).transpose(1, 2).flatten(2))

    layers = {"q": nn.Linear(6, 20 if fused else 12), "k": nn.Linear(6, 4), "v": nn.Linear(6, 4)}
    prepared = prepared64(token_net(body, out=6, **layers, m=nn.Linear(12, 6)), tokens())
    groups = prunable(prepared, "q.weight")
    assert [{(m.name, m.dim, m.indices) for m in group.members} for group in groups] == [
        {
            (name, dim, tuple(range(4 * head, 4 * head + 4)))
            for name, dim in (("q.weight", 0), ("q.bias", 0), ("m.weight", 1))
        }
        for head in range(3)
    ]
    assert not prunable(prepared, "v.weight")
    if not fused:
        (why,) = {group.pinned for group in pinned(prepared, "v.weight")}
        assert why is not None and why.startswith("is shared by several heads, at m")
    assert_sound(prepared, tokens())


def test_blocks_of_a_gate_go_one_by_one() -> None:
    """A block-diagonal map of the channels gates them: a block goes with its own matrix, whose insides stay."""

    def body(net: Any, y: Tensor) -> Tensor:
        x = net.x(y)
        blocks = x.reshape(-1, 3, 4).transpose(0, 1)
        gate = torch.baddbmm(net.bias[:, None], blocks, net.blocks).transpose(0, 1).reshape(x.shape)
        return net.m(x * gate.sigmoid())

    layers = {"x": nn.Linear(6, 12), "m": nn.Linear(12, 6), "blocks": parameter(3, 4, 4), "bias": parameter(3, 4)}
    prepared = prepared64(token_net(body, out=6, **layers), tokens())
    groups = prunable(prepared, "x.weight")
    assert [{(m.name, m.dim, m.indices) for m in group.members} for group in groups] == [
        {
            *(
                (name, dim, tuple(range(4 * block, 4 * block + 4)))
                for name, dim in (("x.weight", 0), ("x.bias", 0), ("m.weight", 1))
            ),
            *((name, 0, (block,)) for name in ("blocks", "bias")),
        }
        for block in range(3)
    ]
    assert_sound(prepared, tokens())


def test_two_labels_that_meet_nothing_both_go_on() -> None:
    """What a view parts again is not decided where it was flattened: rows and what they share go by themselves."""

    def body(net: Any, y: Tensor) -> Tensor:
        flat = (net.x(y)[..., :, None] * net.z(y)[..., None, :]).flatten(2).relu()
        return net.m(flat.unflatten(-1, (3, 4)).sum(-2))

    layers = {"x": nn.Linear(6, 3), "z": nn.Linear(6, 4), "m": nn.Linear(4, 6)}
    prepared = prepared64(token_net(body, out=6, **layers), tokens())
    assert len(prunable(prepared, "z.weight")) == 4
    assert_sound(prepared, tokens())


def test_rows_that_go_together_anyway_leave_what_they_share_in_their_group() -> None:
    """Pinning what they share would gain nothing: two rows that are added to each other are one group with it."""

    def body(net: Any, y: Tensor) -> Tensor:
        x = net.x(y)
        rows = x + x.flip(-1)
        return net.m((rows[..., :, None] * net.z(y)[..., None, :]).flatten(2))

    layers = {"x": nn.Linear(6, 2), "z": nn.Linear(6, 4), "m": nn.Linear(8, 6)}
    prepared = prepared64(token_net(body, out=6, **layers), tokens())
    (group,) = prunable(prepared, "x.weight")
    assert prunable(prepared, "z.weight") == [group]
    assert {(m.name, m.dim, len(m.indices)) for m in group.members if m.name.endswith("weight")} == {
        ("x.weight", 0, 2),
        ("z.weight", 0, 4),
        ("m.weight", 1, 8),
    }


@given(rows=st.integers(2, 5), width=st.integers(2, 5), data=st.data())
def test_rows_and_what_they_share_are_told_by_their_places(rows: int, width: int, data: st.DataObject) -> None:
    names = data.draw(st.permutations(range(rows + width)))
    outer, inner = torch.tensor(names[:rows]), torch.tensor(names[rows:])
    left, right = outer.repeat_interleave(width), inner.repeat(rows)
    assert are_rows(left, right) and not are_rows(right, left)
    place = data.draw(st.integers(0, rows * width - 1))
    for layer in (left, right):
        for other in (-1, rows + width):
            changed = layer.clone()
            changed[place] = other
            pair = (changed, right) if layer is left else (left, changed)
            assert not are_rows(*pair)
    assert not are_rows(left, outer[0] + torch.zeros_like(left))
    assert not are_rows(left, torch.where(right == inner[0], outer[0], right)), "an id in both"


def test_every_row_of_a_group_convolution_is_zeroed() -> None:
    """The rows of all groups belong to what is scored and zeroed, not only those of the first."""
    net = image_net(lambda net, y: net.c(y.relu()).relu(), out=8, c=nn.Conv2d(6, 8, 3, groups=2))
    prepared = prepared64(net, image())
    (slot,) = [slot for slot in prepared.slots if slot.name == "c.weight"]
    assert slot.group.tolist() == [*slot.group[:4].tolist()] * 2
    assert bool((slot.group >= 0).all())
