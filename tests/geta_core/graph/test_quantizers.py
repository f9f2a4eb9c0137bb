"""Quantizers do not change what can be removed together: the groups are those of the float model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.prepared import Prepared
from orchestration.models import available, build_small, example_inputs
from tests.geta_core.graph.listing import contents
from tests.geta_core.graph.nets import choose, gap, image, image_net, prunable, rows, run

QUANTIZERS: dict[str, dict[str, Any]] = {
    "weights": {"weight_bits": (4, 8)},
    "weights and inputs": {"weight_bits": (4, 8), "activation_bits": (4, 8)},
    "weights per channel": {"weight_bits": (4, 8), "per_channel": True},
    "inputs": {"weight_bits": None, "activation_bits": (4, 8)},
}
# One model of each kind of structure; the others run with --long.
ALWAYS = {
    "bert_layers",
    "densenet_bc",
    "encoder",
    "mlp",
    "mobilenetv2",
    "resnet18",
    "resnet18_gn",
    "resnet20",
    "seresnet18",
    "unet",
    "vgg7",
    "vit",
}
MODELS = [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.long]) for name in available()]


def prepared(model: nn.Module, inputs: Any, **settings: Any) -> Prepared:
    return geta.prepare(copy.deepcopy(model), inputs, geta.CompressionConfig(**settings))


@pytest.mark.parametrize("name", MODELS)
def test_the_groups_of_every_model_are_those_of_its_float_version(name: str) -> None:
    model, inputs = build_small(name), example_inputs(name, small=True)
    plain = prepared(model, inputs, weight_bits=None)
    assert plain.num_prunable > 0
    for kind, settings in QUANTIZERS.items():
        quantized = prepared(model, inputs, **settings)
        assert quantized.sites, kind
        assert contents(quantized) == contents(plain), kind
        assert quantized.family.tolist() == plain.family.tolist(), f"{kind}: the groups are numbered differently"
        assert [g.pinned for g in quantized.graph.groups] == [g.pinned for g in plain.graph.groups], kind


def test_values_with_two_labels_per_index_keep_them_through_a_quantizer() -> None:
    def body(net: Any, y: Tensor) -> Tensor:
        flat = y.relu().flatten(2)
        return net.m((flat @ flat.transpose(1, 2)).flatten(1))[:, :, None, None]

    net = image_net(body, out=4, m=nn.Linear(36, 4))
    plain = prepared(net, image(), weight_bits=None)
    for settings in QUANTIZERS.values():
        assert contents(prepared(net, image(), **settings)) == contents(plain)


def test_steps_of_single_channels_go_with_their_channel() -> None:
    """Per-channel steps, ranges and exponents are cut with the row they belong to, and never zeroed."""
    net = image_net(lambda net, y: y.relu())
    found = prepared(net, image(), weight_bits=(4, 8), per_channel=True)
    (group, *_) = prunable(found, "stem.weight")
    quantizer = {id(p) for site in found.sites for p in site.quantizer.parameters()}
    tensors = found.graph.capture.tensors
    own = [member for member in group.members if id(tensors[member.name]) in quantizer]
    assert len(own) == 3
    assert {member.role for member in own} == {"BUFFER"}
    assert all(member.dim == 0 and len(member.indices) == 1 for member in own)
    assert not any(id(slot.parameter) in quantizer for slot in found.slots)
    found.zero_(choose(found, 0))
    for site in found.sites:
        assert bool((site.quantizer.d > 0).all())
    compressed = geta.finish(found)
    weight = compressed.weights["stem.weight"]
    assert weight.step.shape == weight.bits.shape == (3, 1, 1, 1)
    own_step = found.sites[0].quantizer.d.detach().flatten()[compressed.keep["stem.weight", 0]]
    # The step of a whole number of bits is computed anew from q_m and t, in float32.
    torch.testing.assert_close(weight.step.flatten(), own_step, rtol=1e-6, atol=0)


def test_a_removed_channel_does_not_reach_the_range_of_the_others() -> None:
    """One step per tensor: the levels of what stays are the same before and after removal."""
    torch.manual_seed(0)
    net = image_net(lambda net, y: y.relu()).double()
    x = image().double()
    found = prepared(net, x, weight_bits=(4, 4), activation_bits=(4, 4), initial_bits=4)
    found.zero_(choose(found, 0))
    compressed = geta.finish(found)
    for count in (2, 5):
        assert gap(run(found.model, rows(x, count)), run(compressed.model, rows(x, count))) <= 1e-10
    assert compressed.report.flipped_share == 0.0
    assert set(map(int, (w.bits for w in compressed.weights.values()))) == {4}
