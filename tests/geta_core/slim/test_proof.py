"""The proof of finish(): what it compares, and that nothing wrong gets past it at special values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph import ExampleInputs
from geta_core.quantize import Quantizer
from geta_core.slim.graph_module import slim_graph
from geta_core.slim.verify import Difference, difference, with_batch, without_input_quantizers
from orchestration.models import build_small, example_inputs
from tests.geta_core.graph.nets import (
    choose,
    double,
    fresh,
    gap,
    image,
    image_net,
    prepared64,
    prunable,
    randomise_,
    rows,
    run,
)

QUANTIZED = {"weight_bits": (4, 8), "activation_bits": (4, 8), "initial_bits": 8}
MODELS = (
    "bert_layers",
    "densenet_bc",
    "encoder",
    "mlp",
    "mobilenetv2",
    "resnet18_gn",
    "resnet20",
    "row_encoder",
    "seresnet18",
    "unet",
    "vgg7",
    "vit",
)


@pytest.mark.parametrize("name", MODELS)
def test_equality_is_that_of_the_computation_not_of_the_example(name: str) -> None:
    """Quantized to 8 bits, on inputs that finish() never saw: a wrong number of heads can round to the same output."""
    inputs = double(example_inputs(name, small=True))
    prepared = prepared64(build_small(name), inputs, **QUANTIZED)
    prepared.zero_(choose(prepared, 0))
    assert gap(run(prepared.model, inputs), run(prepared.model, fresh(inputs))) > 1e-3
    compressed = geta.finish(prepared)
    for seed in range(3):
        batch = fresh(rows(inputs, 4), seed)
        assert gap(run(prepared.model, batch), run(compressed.model, batch)) <= 1e-10
    assert compressed.report.max_error64 <= 1e-10
    assert compressed.report.flipped_share == 0.0, "in float64 no summation order flips a level"


def heads(model: nn.Module) -> list[int]:
    return [module.num_heads for module in model.modules() if hasattr(module, "num_heads")]


@pytest.mark.parametrize("kind", ["head of zeros", "rounding"])
def test_the_number_of_heads_follows_where_the_output_does_not_show_it(kind: str) -> None:
    """Behind a head of zeros, or coarse rounding, every number of heads gives the same output."""
    name, settings = ("vit", {"weight_bits": None}) if kind == "head of zeros" else ("encoder", QUANTIZED)
    inputs = double(example_inputs(name, small=True))
    prepared = prepared64(build_small(name), inputs, **settings)
    if kind == "head of zeros":
        for parameter in prepared.model.head.parameters():
            nn.init.zeros_(parameter)
    groups = [group for group in prepared.graph.groups if group.pinned is None and len(group.members[0].indices) > 1]
    attention = [group for group in groups if any(len(member.indices) == 24 for member in group.members)]
    assert len(attention) == 8
    prepared.zero_([*attention[:3], *attention[4:6]])
    compressed = geta.finish(prepared)
    assert compressed.report.native
    assert heads(compressed.model) == [1, 2]
    for model in (prepared.model, compressed.model):
        torch.manual_seed(1)
        for parameter in model.get_submodule("head").parameters():
            nn.init.normal_(parameter)
    if kind == "head of zeros":
        batch = fresh(inputs)
        assert gap(run(prepared.model, batch), run(compressed.model, batch)) <= 1e-10


@pytest.mark.parametrize("name", ["vit", "encoder"])
def test_inexact_removal_is_still_removal(name: str) -> None:
    """Where a norm makes removal inexact the result is that of the cut graph, heads and all."""
    inputs = double(example_inputs(name, small=True))
    prepared = prepared64(build_small(name), inputs, prune_normalized=True)
    prepared.zero_(choose(prepared, 0))
    compressed = geta.finish(prepared)
    assert compressed.report.native
    assert compressed.report.inexact >= 1
    assert compressed.report.max_error64 > 1e-3
    assert heads(compressed.model) == [2, 2]
    graph, _ = slim_graph(copy.deepcopy(prepared.model), ExampleInputs.of(inputs), compressed.keep, "head")
    batch = fresh(rows(inputs, 3))
    assert gap(run(graph, batch), run(compressed.model, batch)) <= 1e-10


class Returns(nn.Module):
    """Gives what a function makes of the input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def test_every_kind_of_difference_counts() -> None:
    inputs = ExampleInputs.of(torch.randn(2, 3).double())
    plain = Returns(lambda x: (x, {"sum": x.sum(1)}))
    assert difference(plain, plain, inputs) == Difference(0.0, 0.0)
    # Absolute up to 1, and relative to the largest output beyond.
    small, large = Returns(lambda x: x.tanh()), Returns(lambda x: 1e6 * torch.ones_like(x))
    assert difference(small, Returns(lambda x: x.tanh() + 1e-7), inputs).worst == pytest.approx(1e-7)
    assert difference(large, Returns(lambda x: 1e6 * torch.ones_like(x) + 1), inputs).worst == pytest.approx(1e-6)
    for other in (
        lambda x: (x, {"sum": x.sum(1) / 0 * 0}),
        lambda x: (x, {"sum": x.sum(1, keepdim=True)}),
        lambda x: (x,),
    ):
        assert difference(plain, Returns(other), inputs).worst == float("inf")
    # A result that holds for one batch size alone.
    assert difference(Returns(lambda x: x), Returns(lambda x: x * (x.shape[0] == 2)), inputs).worst > 0.1
    # And one that holds in one mode alone.
    norm = nn.BatchNorm1d(3).double()
    frozen = copy.deepcopy(norm)
    frozen.forward = lambda x: F.batch_norm(x, frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias)  # type: ignore[method-assign]
    found = difference(norm, frozen, inputs)
    assert found.eval_mode == 0 and found.train_mode is not None and found.train_mode > 0.1


def test_dropout_is_compared_in_eval_mode_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).double()
    found = difference(model, copy.deepcopy(model), ExampleInputs.of(torch.randn(2, 3).double()))
    assert found == Difference(0.0, None)
    assert found.larger(Difference(1.0, None)) == Difference(1.0, None)
    assert found.larger(Difference(0.0, 2.0)) == Difference(0.0, 2.0)


def test_neither_model_is_changed_by_the_comparison() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    before = copy.deepcopy(model.state_dict())
    difference(model, model, ExampleInputs.of(torch.randn(2, 3).double()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_are_repeated_for_other_batch_sizes() -> None:
    x, mask, number = torch.arange(6.0).view(2, 3), torch.ones(3, 3), torch.tensor(2.0)
    inputs = ExampleInputs((x, mask), {"number": number})
    found = with_batch(inputs, 5)
    assert found.args[0].tolist() == [x[0].tolist(), x[1].tolist()] * 2 + [x[0].tolist()]
    assert found.args[1] is mask and found.kwargs["number"] is number, "only what has the batch's size is repeated"


def test_input_quantizers_can_be_left_out_of_both_forms() -> None:
    """A module and a graph module without the quantizers of their inputs compute the same; the originals keep them."""
    body = {
        "literal": lambda net, y: F.gelu(y.reshape(-1, 384).reshape(-1, 6, 8, 8)),
        "native": lambda net, y: F.gelu(y),
    }
    x = double(image())
    found = []
    for kind, function in body.items():
        torch.manual_seed(0)
        net = randomise_(image_net(function).double())
        prepared = geta.prepare(net, x, geta.CompressionConfig(**{**QUANTIZED, "weight_bits": (8, 8)}))
        prepared.zero_([group.id for group in prunable(prepared, "stem.weight")[:2]])
        compressed = geta.finish(prepared)
        assert compressed.report.native == (kind == "native")
        smooth = without_input_quantizers(compressed.model)
        assert gap(run(smooth, x), run(compressed.model, x)) > 1e-6
        assert gap(run(smooth, x), run(without_input_quantizers(prepared.model), x)) <= 1e-10
        assert not any(isinstance(module, Quantizer) for module in smooth.modules()) or kind == "literal"
        found.append(run(smooth, x))
    assert gap(*found) <= 1e-10
