"""MACs of single operations against formulas written by hand, and against torch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geta_core as geta
from geta_core.accounting import Layer
from tests.geta_core.accounting.counting import flop_counter_macs


class Operation(nn.Module):
    """A function of the input and of the parameters ``w`` (a matrix or a window), ``u`` and ``v``."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


def rows(model: nn.Module, x: Tensor) -> list[Layer]:
    return list(geta.measure(model, x).layers)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    # name: layer, shape of the input with the batch of 2, MACs per example
    "linear": (nn.Linear(5, 7), (2, 5), 5 * 7),
    "linear over tokens": (nn.Linear(5, 7), (2, 3, 4, 5), 3 * 4 * 5 * 7),
    "conv1d": (nn.Conv1d(3, 6, 5, stride=2, padding=1), (2, 3, 15), 7 * 6 * 3 * 5),
    "conv2d": (nn.Conv2d(3, 8, (3, 5), padding=1), (2, 3, 6, 8), 6 * 6 * 8 * 3 * 15),
    "conv2d same": (nn.Conv2d(3, 8, 3, padding="same"), (2, 3, 6, 8), 6 * 8 * 8 * 3 * 9),
    "conv2d dilated": (nn.Conv2d(3, 8, 3, dilation=2), (2, 3, 6, 8), 2 * 4 * 8 * 3 * 9),
    "conv2d grouped": (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 5, 5), 9 * 8 * 3 * 9),
    "conv2d depthwise": (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5), 9 * 6 * 9),
    "conv2d depthwise, two each": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5), 9 * 12 * 9),
    "conv3d": (nn.Conv3d(2, 4, 3), (2, 2, 5, 4, 3), 3 * 2 * 1 * 4 * 2 * 27),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5), 5 * 4 * 6 * 3),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 5), 25 * 4 * 6 * 4),
    "transposed 2d grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5), 25 * 4 * 3 * 9),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2), (2, 2, 2, 3, 2), 12 * 2 * 3 * 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    layer, shape, macs = LAYERS[name]
    x = torch.randn(shape)
    (row,) = rows(layer, x)
    assert row.macs == macs
    assert row.counted
    assert row.name == "weight"
    assert row.weights == layer.weight.numel()
    assert flop_counter_macs(layer, x) == macs


PRODUCTS: dict[str, tuple[Operation, tuple[int, ...], int]] = {
    "matmul": (Operation(lambda x, w: x @ w, (5, 7)), (2, 3, 5), 3 * 5 * 7),
    "matmul, weight first": (Operation(lambda x, w: w @ x, (7, 5)), (2, 5, 3), 3 * 5 * 7),
    "matmul, weight transposed": (Operation(lambda x, w: x @ w.t(), (7, 5)), (2, 3, 5), 3 * 5 * 7),
    "matmul, one weight per head": (Operation(lambda x, w: x @ w, (4, 5, 7)), (2, 4, 3, 5), 4 * 3 * 5 * 7),
    "matmul with a vector": (Operation(lambda x, w: x @ w, (5,)), (2, 3, 5), 3 * 5),
    "mm": (Operation(torch.mm, (5, 7)), (2, 5), 5 * 7),
    "mv": (Operation(torch.mv, (5,)), (2, 5), 5),
    "addmm": (Operation(lambda x, w, b: torch.addmm(b, x, w), (5, 7), (7,)), (2, 5), 5 * 7),
    "bmm": (Operation(lambda x, w: torch.bmm(x.transpose(0, 1), w), (3, 5, 7)), (2, 3, 5), 3 * 5 * 7),
    "baddbmm": (
        Operation(lambda x, w, b: torch.baddbmm(b, x.transpose(0, 1), w), (3, 5, 7), (3, 1, 7)),
        (2, 3, 5),
        3 * 5 * 7,
    ),
    "einsum": (Operation(lambda x, w: torch.einsum("btk,nk->btn", x, w), (7, 5)), (2, 3, 5), 3 * 5 * 7),
    "einsum without an arrow": (Operation(lambda x, w: torch.einsum("bk,kn", x, w), (5, 7)), (2, 5), 5 * 7),
    "convolution": (
        Operation(lambda x, w: torch.convolution(x, w, None, [1], [0], [1], False, [0], 1), (6, 3, 2)),
        (2, 3, 5),
        4 * 6 * 3 * 2,
    ),
    "convolution, transposed": (
        Operation(lambda x, w: torch.convolution(x, w, None, [1], [0], [1], True, [0], 1), (3, 6, 2)),
        (2, 3, 5),
        5 * 6 * 3 * 2,
    ),
    "a computed weight": (Operation(lambda x, w: F.linear(x, w / w.norm()), (7, 5)), (2, 5), 5 * 7),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_weight(name: str) -> None:
    operation, shape, macs = PRODUCTS[name]
    x = torch.randn(shape)
    (row,) = rows(operation, x)
    assert row.macs == macs
    assert row.counted
    assert row.weights == operation.weights[0].numel()
    assert row.name == ("weights.0" if name != "a computed weight" else "")
    if name not in ("mv", "matmul with a vector"):  # torch's counter leaves these out
        assert flop_counter_macs(operation, x) == macs


def test_a_product_of_three_counts_each_step() -> None:
    chain = Operation(lambda x, w, u: torch.einsum("bk,kn,nm->bm", x, w, u), (5, 7), (7, 3))
    assert [row.macs for row in rows(chain, torch.randn(2, 5))] == [5 * 7, 7 * 3]
    assert [row.name for row in rows(chain, torch.randn(2, 5))] == ["weights.0", "weights.1"]


def test_products_of_weights_alone_are_not_per_example() -> None:
    low_rank = Operation(lambda x, a, b: F.linear(x, a @ b), (7, 2), (2, 5))
    (row,) = rows(low_rank, torch.randn(2, 5))
    assert row.macs == 5 * 7


@pytest.mark.parametrize(("queries", "keys"), [(3, 3), (3, 6)])
def test_attention_products(queries: int, keys: int) -> None:
    heads, size, values = 4, 5, 2

    def attend(x: Tensor) -> Tensor:
        q, k, v = x.split([queries, keys, keys], dim=2)
        return F.scaled_dot_product_attention(q, k, v[..., :values])

    x = torch.randn(2, heads, queries + 2 * keys, size)
    scores, mixed = rows(Operation(attend), x)
    assert (scores.macs, mixed.macs) == (heads * queries * keys * size, heads * queries * keys * values)
    assert not scores.counted
    assert not mixed.counted
    assert (scores.weights, scores.weight_bits, scores.input_bits) == (0, 32, 32)
    measured = geta.measure(Operation(attend), x)
    assert measured.macs == measured.bops == 0
    assert measured.macs_all == scores.macs + mixed.macs == flop_counter_macs(Operation(attend), x)
    assert measured.bops_all == measured.macs_all * 32 * 32


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_multihead_attention(need_weights: bool, cross: bool) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes: dict[str, Any] = {"kdim": 6, "vdim": 10} if cross else {}
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

        def forward(self, x: Tensor) -> Tensor:
            keys, values = (x[:, :4, :6], x[:, :4].repeat(1, 1, 2)[..., :10]) if cross else (x, x)
            out: Tensor = self.attention(x, keys, values, need_weights=need_weights)[0]
            return out

    model, length, seen = Attend(), 5, 4 if cross else 5
    measured = geta.measure(model, torch.randn(2, length, 8))
    projections = length * 8 * 8 + seen * 8 * (6 + 10 if cross else 8 + 8)
    assert measured.macs == projections + length * 8 * 8
    assert measured.macs_all == measured.macs + 2 * length * seen * 8
    assert measured.macs_all == flop_counter_macs(model, torch.randn(2, length, 8))


def test_macs_are_per_example_whatever_the_batch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    expected = 16 * 4 * 27 + 64 * 5
    assert {geta.measure(net, torch.randn(size, 3, 6, 6)).macs for size in (2, 3, 8)} == {expected}


def test_normalisations_and_activations_cost_no_macs() -> None:
    net = nn.Sequential(nn.BatchNorm1d(5), nn.ReLU(), nn.LayerNorm(5), nn.Softmax(-1), nn.GELU())
    assert not rows(net, torch.randn(2, 5))
    assert geta.measure(net, torch.randn(2, 5)).as_dict()["macs_all"] == 0
