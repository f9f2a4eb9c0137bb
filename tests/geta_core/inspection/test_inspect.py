"""What ``geta.inspect`` reports: operations, pins, quantizers and the proof; and that it touches nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph.rules import base
from geta_core.inspection.proof import choose
from tests.geta_core.compressing import batch, build
from tests.geta_core.graph.nets import image, image_net, token_net, tokens
from tests.geta_core.inspection.nets import Small
from tests.structure.sources import ROOT

FLOATS = geta.CompressionConfig(weight_bits=None)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the rules that a test registers."""
    geta.prepare(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))


def test_the_whole_report_of_a_small_net(golden: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field but the difference itself, whose last digits belong to the machine."""
    monkeypatch.chdir(ROOT)  # source files are named from the current directory
    config = geta.CompressionConfig(activation_bits=(4, 8), pin=("inner.bias",))
    found = geta.inspect(Small(), image(), config)
    values = found.to_dict()
    assert 0 <= values["proof"].pop("error") <= 1e-10
    golden(Path(__file__).parent / "golden" / "small.json", json.dumps(values, indent=1) + "\n")


def test_the_report_is_plain_json() -> None:
    found = geta.inspect(Small(), image(), prove=False)
    values = found.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["schema"] == "geta-inspection/1"
    assert values["sound"] is True and values["proof"]["holds"] is None
    fields = {field.name for field in dataclasses.fields(found)}
    assert set(values) == fields | {"schema", "sound"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.totals.parameters = 0  # type: ignore[misc]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_touched(training: bool) -> None:
    model = build("encoder")
    model.train(training)
    next(model.modules()).marker = object()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identities = {name: id(value) for name, value in model.named_parameters()}
    modules = [type(module) for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    inputs = batch("encoder")
    given = inputs.clone()
    assert geta.inspect(model, inputs, geta.CompressionConfig(activation_bits=(4, 8)), seed=3).proof.holds
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and np.array_equal(np.random.get_state()[1], states[2])
    assert torch.equal(inputs, given)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in model.named_parameters()} == identities
    assert [type(module) for module in model.modules()] == modules
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_gives_the_same_report() -> None:
    model = build("resnet")
    first, again, other = (geta.inspect(model, batch("resnet"), FLOATS, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.proof.removed, first.groups) == (other.proof.removed, other.groups)


class Strange(nn.Module):
    """Three operations without a rule, one of them twice and one behind another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.inner = nn.Sequential(nn.ReLU(), Running())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.stem(x))
        y = torch.ops.geta_tests.unknown(y).renorm(2, 0, 9.0)
        steps = x.renorm(2, 0, 9.0)[:, 0, 0, :2]  # no parameter index gets here: no rule is needed
        return self.head(torch.ops.geta_tests.other(y).mean((2, 3))) + steps.renorm(2, 0, 9.0)


class Running(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.renorm(2, 0, 9.0)


def _define(name: str) -> None:
    @torch.library.custom_op(f"geta_tests::{name}", mutates_args=())
    def op(x: Tensor) -> Tensor:
        return 2 * x

    op.register_fake(torch.empty_like)


_define("unknown")
_define("other")


def test_operations_without_a_rule_are_listed_all_at_once(rules: None) -> None:
    model = Strange()
    found = geta.inspect(model, image())
    missing = {each.name: each for each in found.missing}
    assert set(missing) == {"aten.renorm.default", "geta_tests.unknown.default", "geta_tests.other.default"}
    assert [place.module for place in missing["aten.renorm.default"].places] == ["inner.1", ""]
    assert all("test_inspect.py" in place.source for each in found.missing for place in each.places)
    assert missing["aten.renorm.default"].places[0].source.endswith("return x.renorm(2, 0, 9.0)")
    assert "torch.ops.geta_tests.unknown" in missing["geta_tests.unknown.default"].places[0].source
    for name, each in missing.items():
        assert each.fix.startswith(f"geta.register_rule(torch.ops.{name}, like=")
    counts = {(row.name, row.treatment): row.count for row in found.operations}
    assert counts["aten.renorm.default", "missing"] == 2
    assert counts["aten.renorm.default", "not needed"] == 2
    assert counts["aten.conv2d.default", "packet"] == 1
    assert not found.sound and not found.groups and found.proof.holds is None
    assert found.totals.parameters == sum(p.numel() for p in model.parameters())
    json.dumps(found.to_dict(), allow_nan=False)
    # The lines that the report asks for, with a fitting model for each, are all that is needed.
    for name in ("unknown", "other"):
        geta.register_rule(getattr(torch.ops.geta_tests, name).default, like=torch.ops.aten.neg.default)
    again = geta.inspect(model, image())
    assert [each.name for each in again.missing] == ["aten.renorm.default"]

    def pinned(ctx: Any, node: torch.fx.Node) -> tuple[Tensor, ...]:
        for layer in ctx.layers(node.args[0]):
            ctx.pin(node, layer, "is summed up along the channels")
        return ()

    geta.register_rule(torch.ops.aten.renorm.default, labels=pinned)
    whole = geta.inspect(model, image())
    assert whole.sound and not whole.missing


def test_an_unusable_form_of_a_known_operation_is_listed_too() -> None:
    found = geta.inspect(image_net(lambda net, y: torch.einsum("nchh->nch", y)[..., None]), image())
    (only,) = found.missing
    assert only.name == "aten.einsum.default" and "takes a diagonal" in only.why and only.fix == ""


def test_a_write_into_a_part_is_a_pin_with_its_place() -> None:
    def in_place(net: Any, y: Tensor) -> Tensor:
        part = y[:, :3]
        part.mul_(2.0)
        return y.relu()

    found = geta.inspect(image_net(in_place), image())
    assert found.sound and not found.missing
    assert any("is written in place into a part of a value" in pin.reason for pin in found.pins)


def test_pins_name_reason_module_and_line() -> None:
    norm = nn.LayerNorm(6)
    net = token_net(lambda net, y: net.norm(net.a(y)) + net.a(y).sigmoid(), a=nn.Linear(6, 6), norm=norm)
    found = geta.inspect(net, tokens(), geta.CompressionConfig(pin=(net.stem,)), prove=False)
    pins = {pin.tensor.rpartition("[")[0]: pin for pin in found.pins}
    assert set(pins) == {"stem.bias", "a.bias", "head.bias"}
    assert pins["stem.bias"].reason == "was pinned by the configuration"
    assert pins["stem.bias"].place.module == "stem"
    head = pins["head.bias"]
    assert head.reason == "reaches the model's output" and head.place.module == "head" and head.groups == 5
    inner = pins["a.bias"]
    assert "enters a LayerNorm or RMSNorm reduction" in inner.reason
    assert inner.place.module == "norm" and inner.place.operation == "aten.layer_norm.default"
    assert inner.place.source.endswith("return self.body(self, x)") and inner.groups == 6
    assert sum(pin.groups for pin in found.pins) == sum(group.pinned is not None for group in found.groups)


class Idle(nn.Module):
    """A layer that never runs, one that runs, and one whose input is whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.used, self.unused = nn.Embedding(10, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.table(x).relu())


def test_quantizers_that_cannot_fire_say_why() -> None:
    config = geta.CompressionConfig(activation_bits=(4, 8))
    found = geta.inspect(Idle(), torch.randint(10, (2, 5)), config, prove=False)
    sites = {site.name: site for site in found.sites}
    assert sites["used.weight"].reason is None and sites["used.weight"].kind == "weight"
    assert sites["used.input"].reason is None and sites["used.input"].kind == "input"
    for name, kind in (("unused.weight", "weight"), ("unused.input", "input")):
        assert sites[name].kind == kind and sites[name].reason
    prepared = geta.prepare(Idle(), torch.randint(10, (2, 5)), config)
    assert {name: sites[name].reason for name in prepared.unquantized} == prepared.unquantized
    assert {site.name for site in found.sites if not site.reason} == {"used.weight", "used.input"}


@pytest.mark.parametrize(("net", "kind"), [("resnet", "native"), ("fixed", "graph module")])
def test_the_proof_says_how_it_was_done(net: str, kind: str) -> None:
    proof = geta.inspect(build(net), batch(net)).proof
    assert proof.holds is True and proof.kind == kind
    assert proof.error is not None and proof.error <= proof.tolerance == 1e-10
    assert bool(proof.reason) == (kind == "graph module")
    assert 0.2 * proof.groups < proof.removed < 0.5 * proof.groups


def test_the_proof_fails_for_a_wrong_rule(rules: None) -> None:
    """``unknown`` doubles, and would pass as element-wise; a rule that reverses the channels' order is wrong."""
    net = image_net(lambda net, y: torch.ops.geta_tests.unknown(y.relu()) + y.relu())

    def reversed_(layers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(layer.flip(1) for layer in layers)

    geta.register_rule(
        torch.ops.geta_tests.unknown.default,
        labels=lambda ctx, node: reversed_(ctx.layers(node.args[0])),
        zeros=lambda ctx, node: reversed_(ctx.zeros(node.args[0])),
    )
    # The sum ties channel c with channel 5 - c, so that pairs go: right in spite of the wrong rule.
    assert geta.inspect(net, image()).proof.holds
    wrong = image_net(lambda net, y: torch.ops.geta_tests.unknown(y.relu()))
    found = geta.inspect(wrong, image())
    assert found.proof.holds is False and not found.sound and not found.missing
    assert found.proof.error is not None and found.proof.error > 1e-6
    assert "must agree" in found.proof.reason


def test_zeros_that_a_fresh_model_holds_hide_nothing(rules: None) -> None:
    """A norm that starts at zero makes its branch zero, whatever the rules inside it say."""
    inner, norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
    net = image_net(lambda net, y: y.relu() + net.bn(torch.ops.geta_tests.unknown(net.b(y))), b=inner, bn=norm)
    nn.init.zeros_(norm.weight)
    geta.register_rule(
        torch.ops.geta_tests.unknown.default,
        labels=lambda ctx, node: tuple(layer.flip(1) for layer in ctx.layers(node.args[0])),
        zeros=lambda ctx, node: tuple(layer.flip(1) for layer in ctx.zeros(node.args[0])),
    )
    # Three of six channels: their mirror images are not the same three.
    assert geta.inspect(net, image(), share=0.5).proof.holds is False


def test_the_choice_of_groups_keeps_the_policy() -> None:
    config = geta.CompressionConfig(weight_bits=None, divisible_by=3, min_kept=2)
    prepared = geta.prepare(build("resnet"), batch("resnet"), config)
    sizes = torch.bincount(prepared.family)
    for share in (0.0, 0.01, 0.5, 0.99):
        chosen = choose(prepared, share, torch.Generator().manual_seed(0))
        kept = sizes - torch.bincount(prepared.family[chosen], minlength=len(sizes))
        assert bool(((kept % 3 == 0) | (kept == sizes)).all()) and bool((kept >= 2).all())
        assert len(chosen.unique()) == len(chosen)
        assert (len(chosen) == 0) == (share == 0.0)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_a_share_out_of_bounds(share: float) -> None:
    with pytest.raises(geta.ConfigError, match="0 <= share < 1"):
        geta.inspect(Small(), image(), share=share)


def test_what_prepare_refuses_is_refused() -> None:
    with pytest.raises(geta.GetaError, match="forward fails"):
        geta.inspect(Small(), torch.randn(2, 4, 8, 8))
    net = token_net(lambda net, y: y if float(y.sum()) > 0 else -y)
    with pytest.raises(geta.GetaError, match=r"torch\.export cannot trace"):
        geta.inspect(net, tokens())
    with pytest.raises(geta.ConfigError, match="did you mean 'stem'"):
        geta.inspect(Small(), image(), geta.CompressionConfig(pin=("stm",)))


def test_pins_by_object_follow_the_copy() -> None:
    net = Small()
    pinned = geta.inspect(net, image(), geta.CompressionConfig(pin=(net.inner,)), prove=False)
    named = geta.inspect(copy.deepcopy(net), image(), geta.CompressionConfig(pin=("inner",)), prove=False)
    assert pinned == named
    assert {group.family for group in pinned.groups if group.pinned == "was pinned by the configuration"} == {
        group.family for group in pinned.groups for member in group.members if member.name == "inner.bias"
    }
