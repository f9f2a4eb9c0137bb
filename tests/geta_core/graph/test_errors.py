"""What a user can do wrong, and what the message says; a refused model is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph.rules import base
from tests.geta_core.graph.nets import (
    Net,
    assert_sound,
    choose,
    double,
    image,
    image_net,
    pinned,
    prepared64,
    prunable,
    randomise_,
    token_net,
    tokens,
)

aten = torch.ops.aten


@torch.library.custom_op("geta_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("geta_tests::mirror", mutates_args=())
def mirror(x: Tensor) -> Tensor:
    return x.flip(1)


@mirror.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Limited(nn.Module):
    """Limits the norm of each channel: an operation that no rule describes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.renorm(2, 1, 1.0)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the rules that a test registers."""
    geta.prepare(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))


def test_an_unknown_operation_is_named_with_its_place_and_the_way_out() -> None:
    net = image_net(lambda net, y: net.inner(y), inner=nn.Sequential(nn.ReLU(), Limited()))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(geta.UnsupportedOpError) as caught:
        geta.prepare(net, image(), geta.CompressionConfig(activation_bits=(4, 8)))
    message = str(caught.value)
    for part in (
        "no dependency rule for aten.renorm.default",
        "in inner.1 (",
        "test_errors.py",
        "return x.renorm(2, 1, 1.0)",
        "geta_core.register_rule(torch.ops.aten.renorm.default, like=",
        "labels=",
    ):
        assert part in message, message
    # Nothing of the quantizers is left on the model.
    assert net.state_dict().keys() == before.keys()
    assert not any("quantizer" in name for name, _ in net.named_modules())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(type(p) is nn.Parameter for p in net.parameters())


def test_a_rule_like_another(rules: None) -> None:
    net = image_net(lambda net, y: torch.ops.geta_tests.twice(y.relu()))
    with pytest.raises(geta.UnsupportedOpError, match=r"geta_tests.twice.default"):
        prepared64(copy.deepcopy(net), image())
    geta.register_rule(torch.ops.geta_tests.twice.default, like=aten.neg.default)
    prepared = prepared64(net, image())
    assert len(prunable(prepared, "stem.weight")) == 6
    assert_sound(prepared, image())


def flipped(layers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(layer.flip(1) for layer in layers)


def test_a_rule_of_ones_own(rules: None) -> None:
    net = image_net(lambda net, y: y.relu() + torch.ops.geta_tests.mirror(net.b(y).relu()), b=nn.Conv2d(6, 6, 1))
    op = torch.ops.geta_tests.mirror.default

    def labels(ctx: Any, node: torch.fx.Node) -> tuple[Tensor, ...]:
        return flipped(ctx.layers(node.args[0]))

    # Without a word on zeros nothing is assumed to be zero: what reads the channels is zeroed, too.
    geta.register_rule(op, labels=labels)
    prepared = prepared64(copy.deepcopy(net), image())
    (group, *_) = prunable(prepared, "stem.weight")
    assert ("last.weight", "PRODUCE") in {(m.name, m.role) for m in group.members}
    assert_sound(prepared, image())
    geta.register_rule(op, labels=labels, zeros=lambda ctx, node: flipped(ctx.zeros(node.args[0])))
    prepared = prepared64(net, image())
    (group, *_) = prunable(prepared, "stem.weight")
    assert ("last.weight", "CONSUME") in {(m.name, m.role) for m in group.members}
    indices = {m.name: m.indices for m in group.members if m.dim == 0}
    assert indices["b.weight"] == (5 - indices["stem.weight"][0],)
    assert_sound(prepared, image())


def test_a_rule_needs_a_source(rules: None) -> None:
    with pytest.raises(geta.GetaError, match=r"register_rule needs like=\.\.\. or labels="):
        geta.register_rule(torch.ops.geta_tests.twice.default)
    with pytest.raises(geta.GetaError, match=r"there is no rule for geta_tests\.mirror\.default"):
        geta.register_rule(torch.ops.geta_tests.twice.default, like=torch.ops.geta_tests.mirror.default)


class Wide(nn.Module):
    """Takes only batches of the size it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(2, 28)


def test_example_inputs() -> None:
    net = token_net(lambda net, y: y.relu())
    wrong = {
        "the model's forward fails on the example inputs: RuntimeError: mat1 and mat2": torch.randn(2, 7, 9),
        "must have a batch of at least 2": torch.randn(1, 7, 8),
        "must be a tensor, a tuple or a dict, but got str": "x",
        "must hold at least one tensor": (3,),
    }
    for message, inputs in wrong.items():
        with pytest.raises(geta.GetaError) as caught:
            geta.prepare(net, inputs)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(geta.GetaError, match=r"with 3 instead of 2 rows \(it must take any batch size\)"):
        geta.prepare(Wide(), tokens())
    assert not net.training or net.stem.weight.requires_grad
    assert all("parametrizations" not in name for name, _ in net.named_parameters())


def test_what_cannot_be_traced() -> None:
    net = token_net(lambda net, y: y if float(y.sum()) > 0 else -y)
    with pytest.raises(geta.GetaError, match=r"torch\.export cannot trace the model"):
        geta.prepare(net, tokens())
    assert all("parametrizations" not in name for name, _ in net.named_parameters())


def test_data_dependent_control_flow_says_what_to_write_instead() -> None:
    net = token_net(lambda net, y: y * int(y.argmax()))
    with pytest.raises(geta.GetaError, match=r"torch\.export cannot trace the model: .*use torch\.where"):
        geta.prepare(net, tokens())


class Straight(torch.autograd.Function):
    """Rounds; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_a_backward_pass_of_ones_own_is_kept_or_refused() -> None:
    """The model's own class keeps it; a graph module could not, and is refused."""
    net = image_net(lambda net, y: Straight.apply(y.relu()))
    compressed = assert_sound(prepared64(net, image()), image())
    assert compressed is not None and compressed.report.native
    (loss,) = compressed.model(double(image())).square().mean()[None]
    loss.backward()
    assert compressed.model.stem.weight.grad.abs().max() > 0
    fixed = image_net(lambda net, y: Straight.apply(y.relu()).reshape(-1, 6 * 64).reshape(-1, 6, 8, 8))
    prepared = prepared64(fixed, image())
    prepared.zero_(choose(prepared, 0))
    with pytest.raises(geta.PruningError, match=r"lose the backward pass of Straight .*register_autograd"):
        geta.finish(prepared)
    assert "apply" in vars(torch.autograd.Function)


def deep() -> Net:
    blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()) for _ in range(2))
    return image_net(lambda net, y: net.blocks[1](net.blocks[0](y.relu())), blocks=blocks)


def test_pins_by_object_and_by_name() -> None:
    every = {"stem.weight": 6, "blocks.0.0.weight": 6, "blocks.1.0.weight": 6}
    for pin, kept in {
        "blocks.0.0": "blocks.0.0.weight",
        "blocks.0": "blocks.0.0.weight",
        "blocks.0.0.bias": "blocks.0.0.weight",
        "stem.weight": "stem.weight",
    }.items():
        prepared = prepared64(deep(), image(), pin=(pin,))
        assert {name: len(prunable(prepared, name)) for name in every} == {**every, kept: 0}
        assert {g.pinned for g in pinned(prepared, kept)} == {"was pinned by the configuration"}
    net = deep()
    prepared = prepared64(net, image(), pin=(net.blocks,))
    assert {name: len(prunable(prepared, name)) for name in every} == {**dict.fromkeys(every, 0), "stem.weight": 6}
    assert_sound(prepared, image())


def test_wrong_pins_are_all_named_and_the_closest_name_suggested() -> None:
    config = geta.CompressionConfig(weight_bits=None, pin=("blocks.0.0.wieght", "stm", nn.ReLU()))
    with pytest.raises(geta.ConfigError) as caught:
        geta.prepare(deep(), image(), config)
    first, second, third = caught.value.faults
    assert "'blocks.0.0.wieght'" in first and "did you mean 'blocks.0.0.weight'?" in first
    assert "'stm'" in second and "did you mean 'stem'?" in second
    assert third == "pin: ReLU is not a module of this model"


def test_a_pinned_group_is_not_zeroed() -> None:
    prepared = prepared64(image_net(lambda net, y: y.sigmoid().sum(1, keepdim=True), out=1), image())
    group = pinned(prepared, "stem.weight")[0]
    with pytest.raises(geta.GetaError, match=rf"group {group.id} cannot be removed: it is not exactly zero"):
        prepared.zero_([group])
    head = pinned(prepared, "head.weight")[0]
    with pytest.raises(geta.GetaError, match="cannot be removed: it reaches the model's output"):
        prepared.zero_([head.id])
    assert prepared.zero_groups() == 0


def test_finish_waits_for_the_schedule() -> None:
    net = randomise_(image_net(lambda net, y: y.relu()).double())
    prepared = geta.prepare(net, double(image()), geta.CompressionConfig(sparsity=0.5))
    schedule = geta.Schedule(warmup=1, projection=1, joint=2, cooldown=1, projection_periods=1, pruning_periods=1)
    optimizer = geta.QASSO(prepared, torch.optim.SGD, schedule=schedule, lr=1e-3)
    for done in range(5):
        with pytest.raises(geta.ScheduleError, match="the QASSO schedule is not complete"):
            geta.finish(prepared)
        if done == 2:
            assert geta.finish(prepared, early=True).report.native
        optimizer.zero_grad()
        prepared.model(double(image())).square().sum().backward()
        optimizer.step()
    report = geta.finish(prepared).report
    assert report.removed == int(0.5 * prepared.num_prunable)


def test_finish_without_an_optimizer_changes_nothing_of_what_was_prepared() -> None:
    prepared = prepared64(image_net(lambda net, y: y.relu()), image())
    prepared.zero_(choose(prepared, 0))
    before = {name: tensor.clone() for name, tensor in prepared.model.state_dict().items()}
    prepared.model.train()
    compressed = geta.finish(prepared)
    assert prepared.model.training and not compressed.model.training
    after = prepared.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not {id(p) for p in prepared.model.parameters()} & {id(p) for p in compressed.model.parameters()}
