"""Preparing a model: what is attached, what is found, what is counted, and that a failure leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import geta_core as geta
from geta_core.graph import ExampleInputs
from geta_core.quantize import Attention, Quantizer
from tests.geta_core.compressing import NETS, batch, build, some_groups

WA = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8))


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 5)
    )


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- what is attached


def test_the_model_is_changed_in_place() -> None:
    model = conv_net()
    convolution, weight = model[0], model[0].weight
    prepared = geta.prepare(model, X, WA)
    assert prepared.model is model
    assert model[0] is convolution
    assert prepared.sites[0].parameter is weight
    assert parametrize.is_parametrized(convolution, "weight")
    assert isinstance(model.get_submodule("0.input_quantizer"), Quantizer)
    assert "IN PLACE" in (geta.prepare.__doc__ or "")


def test_names_and_kinds_of_the_sites() -> None:
    prepared = geta.prepare(conv_net(), X, WA)
    layers = ("0", "3", "5")
    assert [(site.name, site.kind) for site in prepared.sites] == [
        *((f"{layer}.weight", "weight") for layer in layers),
        *((f"{layer}.input", "input") for layer in layers),
    ]
    assert [site.numel for site in prepared.sites] == [8 * 27, 6 * 72, 5 * 96, 3 * 64, 8 * 36, 6 * 16]
    assert all(site.quantizer.bits().eq(16).all() for site in prepared.sites)
    assert prepared.unquantized == {}


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"weight_bits": None}, set()),
        ({"weight_bits": (4, 8)}, {"weight"}),
        ({"weight_bits": None, "activation_bits": (4, 8)}, {"input"}),
    ],
)
def test_what_is_not_asked_for_stays_float(config: dict[str, Any], kinds: set[str]) -> None:
    model, plain = conv_net().eval(), conv_net().eval()
    plain.load_state_dict(model.state_dict())
    prepared = geta.prepare(model, X, geta.CompressionConfig(**config))
    assert {site.kind for site in prepared.sites} == kinds
    if not kinds:
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(model(X), plain(X))
    else:
        assert not torch.equal(model(X), plain(X))
        torch.testing.assert_close(model(X), plain(X), rtol=0, atol=1e-3)


def test_attention_is_replaced_and_stays_what_it_was() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0])

    model, x = Encoder(), torch.randn(2, 5, 8)
    attention, expected = model.attention, model(x)
    prepared = geta.prepare(model, x, WA)
    assert model.attention is attention
    assert isinstance(attention, Attention)
    assert {site.name for site in prepared.sites} == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "attention.input",
        "attention.out_proj.input",
        "head.weight",
        "head.input",
    }
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-3)
    assert prepared.num_prunable == 2 + 8  # heads, and rows of the output projection


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "dict", "inputs"])
def test_every_form_of_example(form: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    x = torch.randn(3, 4)
    forms = {"tensor": x, "tuple": (x,), "list": [x], "dict": {"x": x}, "inputs": ExampleInputs((x,), {})}
    prepared = geta.prepare(Named(), forms[form], WA)
    assert prepared.num_prunable == 6
    assert prepared.measure().macs == 4 * 6 + 6 * 2
    assert geta.finish(prepared).report.native


@pytest.mark.parametrize("train", [False, True])
def test_modes_and_values_are_kept(train: bool) -> None:
    model = build("resnet").train(train)
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    values = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    random = torch.random.get_rng_state()
    prepared = geta.prepare(model, batch("resnet"), WA)
    kept = [
        module for module in model.modules() if not isinstance(module, (Quantizer, parametrize.ParametrizationList))
    ]
    assert [module.training for module in kept if not isinstance(module, nn.ModuleDict)] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    found = {site.name: site.parameter for site in prepared.sites if site.kind == "weight"}
    found |= {name: value for name, value in (*model.named_parameters(), *model.named_buffers()) if name in values}
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())


# ---------------------------------------------------------------- calibration


def ranges(prepared: geta.Prepared) -> dict[str, float]:
    return {site.name: float(site.quantizer.q_m.detach()) for site in prepared.sites if site.kind == "input"}


def test_ranges_come_from_the_data_and_not_from_the_weights() -> None:
    """Defect 17 of the released code."""
    model = conv_net().eval()
    with torch.no_grad():
        for layer in (model[0], model[3], model[5]):
            layer.weight.mul_(1e-3)
    batches = [X * 50, X * 70, X]
    with torch.no_grad():
        hidden = [model[:3](b).abs().max().item() for b in batches], [model[:5](b).abs().max().item() for b in batches]
    seen = [70 * X.abs().max().item(), *map(max, hidden)]
    prepared = geta.prepare(model, X, WA, calibration=batches)
    # The weights are already quantized (16 bits) when the ranges are taken.
    assert list(ranges(prepared).values()) == pytest.approx(seen, rel=1e-3)
    assert [site.quantizer.signed for site in prepared.sites if site.kind == "input"] == [True, False, True]


def test_without_batches_the_example_is_taken() -> None:
    from_example = ranges(geta.prepare(conv_net_of(5), X * 3, WA))
    from_batches = ranges(geta.prepare(conv_net_of(5), X, WA, calibration=[X * 3]))
    assert from_example == from_batches
    assert from_example["0.input"] == (3 * X).abs().max().item()


def conv_net_of(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return conv_net()


def test_batches_may_come_one_by_one_and_in_any_form() -> None:
    expected = ranges(geta.prepare(conv_net_of(5), X, WA, calibration=[X, X * 2]))
    forms: Iterator[Any] = iter([(X,), {"input": X * 2}])
    assert ranges(geta.prepare(conv_net_of(5), X, WA, calibration=forms)) == expected


def test_initial_bits_are_those_of_the_configuration() -> None:
    config = geta.CompressionConfig(weight_bits=(4, 6), activation_bits=(4, 5), initial_bits=7, per_channel=True)
    prepared = geta.prepare(conv_net(), X, config)
    assert all(bool(site.quantizer.bits().eq(7).all()) for site in prepared.sites)
    assert prepared.sites[0].quantizer.d.shape == (8, 1, 1, 1)


# ---------------------------------------------------------------- sites that never fire


class Silent(nn.Module):
    """Layers whose modules are not called: their weights are read, or nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.read, self.idle = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(3, 3)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.used(x))
        return self.out(torch.relu(nn.functional.linear(x, self.read.weight, self.read.bias)))


def test_sites_that_never_fire_are_reported_and_not_counted() -> None:
    prepared = geta.prepare(Silent(), torch.randn(3, 4), WA)
    assert set(prepared.unquantized) == {"read.input", "idle.input", "idle.weight"}
    assert all(prepared.unquantized.values())
    assert {site.name for site in prepared.sites if site.kind == "input"} == {"used.input", "out.input"}
    for site in prepared.sites:
        site.quantizer.set_bits_(4)
    measured = prepared.measure()
    assert {row.name: (row.weight_bits, row.input_bits) for row in measured.layers} == {
        "used.weight": (4, 4),
        "read.weight": (4, 32),
        "out.weight": (4, 4),
    }
    assert measured.weight_bits == 4
    assert measured.activation_bits == (4 + 32 + 4) / 3
    assert not hasattr(prepared.model.read, "input_quantizer")
    assert not hasattr(prepared.model.idle, "input_quantizer")
    assert geta.finish(prepared).report.unquantized == prepared.unquantized


# ---------------------------------------------------------------- status and zeros


def test_zeros_are_counted_from_the_parameters() -> None:
    prepared = geta.prepare(build("resnet"), batch("resnet"), geta.CompressionConfig())
    assert prepared.zero_groups() == 0
    chosen = some_groups(prepared, 0.3)
    prepared.zero_(chosen)
    assert torch.nonzero(prepared.zero_mask()).flatten().tolist() == sorted(chosen)
    assert prepared.status()["group_sparsity"] == pytest.approx(len(chosen) / prepared.num_prunable)
    # One element of one member is enough to be alive; negative zero is zero.
    group = prepared.graph.groups[chosen[0]]
    member = next(member for member in group.members if member.role == "PRODUCE")
    slot = next(slot for slot in prepared.slots if (slot.name, slot.dim) == (member.name, member.dim))
    with torch.no_grad():
        row = slot.parameter.select(slot.dim, member.indices[0])
        row.fill_(-0.0)
        assert prepared.zero_groups() == len(chosen)
        row.view(-1)[-1] = 1e-30
    assert prepared.zero_groups() == len(chosen) - 1
    assert not prepared.zero_mask()[chosen[0]]


def test_zeroing_by_group_or_number() -> None:
    prepared = geta.prepare(conv_net(), X, WA)
    prepared.zero_([prepared.graph.groups[2], 5])
    assert torch.nonzero(prepared.zero_mask()).flatten().tolist() == [2, 5]
    weights = {site.name: site.parameter for site in prepared.sites}
    for group in (2, 5):
        assert prepared.graph.groups[group].pinned is None
    assert int((weights["0.weight"].flatten(1) == 0).all(1).sum()) == 2
    prepared.zero_([])
    assert prepared.zero_groups() == 2


def test_a_pinned_group_is_not_zeroed() -> None:
    model = conv_net()
    prepared = geta.prepare(model, X, geta.CompressionConfig(pin=(model[3],)))
    pinned = next(group for group in prepared.graph.groups if group.pinned == "was pinned by the configuration")
    before = model[3].parametrizations.weight.original.clone()
    with pytest.raises(
        geta.GetaError, match=f"group {pinned.id} cannot be removed: it was pinned by the configuration"
    ):
        prepared.zero_([0, pinned])
    assert prepared.zero_groups() == 0
    assert torch.equal(model[3].parametrizations.weight.original, before)
    assert prepared.num_prunable == 8


def test_status_is_the_measurement_in_four_numbers() -> None:
    prepared = geta.prepare(conv_net(), X, WA)
    assert prepared.status() == {
        "group_sparsity": 0.0,
        "weight_bits": 16.0,
        "activation_bits": 16.0,
        "relative_bops": 0.25,
    }
    prepared.zero_([0, 1, 8])
    for site in prepared.sites:
        site.quantizer.set_bits_(6 if site.kind == "weight" else 5)
    measured, status = prepared.measure(), prepared.status()
    assert status["group_sparsity"] == pytest.approx(3 / 14)
    assert (status["weight_bits"], status["activation_bits"]) == (6, 5)
    kept = 6 * 27 * 36 + 5 * 6 * 9 * 16 + 5 * 16 * 5
    dense = 8 * 27 * 36 + 6 * 8 * 9 * 16 + 6 * 16 * 5
    assert measured.macs == kept
    assert status["relative_bops"] == pytest.approx(kept * 30 / (dense * 1024), rel=1e-15)
    assert prepared.bits() == {site.name: 6 if site.kind == "weight" else 5 for site in prepared.sites}


def test_a_net_with_nothing_to_remove() -> None:
    prepared = geta.prepare(nn.Linear(4, 3), torch.randn(2, 4), WA)
    assert prepared.num_prunable == 0
    assert prepared.status()["group_sparsity"] == 0
    assert geta.finish(prepared).report.group_sparsity == 0


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize("net", NETS)
def test_a_copy_of_a_prepared_model_is_its_own(net: str) -> None:
    prepared = geta.prepare(build(net), batch(net), WA)
    twin, x = copy.deepcopy(prepared.model), batch(net, 3)
    expected = prepared.model(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(prepared.model(x), expected)
    assert not torch.equal(twin(x), expected)
    assert prepared.zero_groups() == 0


def test_a_prepared_model_is_not_prepared_again() -> None:
    model = geta.prepare(conv_net(), X, WA).model
    keys = list(model.state_dict())
    with pytest.raises(geta.GetaError, match="can be prepared only once"):
        geta.prepare(model, X, WA)
    assert list(model.state_dict()) == keys


def test_the_output_is_always_pinned() -> None:
    prepared = geta.prepare(conv_net(), X, WA)
    with pytest.raises(geta.GetaError, match="cannot be removed: it reaches the model's output"):
        prepared.zero_([prepared.graph.groups[-1]])
