"""A preparation that fails says why in one line and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import geta_core as geta

WA = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8))


class Faulty(nn.Module):
    """An encoder that fails in a way of choice."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm, self.widen, self.head = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 3)
        if fault == "parametrized":
            nn.utils.parametrizations.weight_norm(self.head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(self.norm(self.encoder(x)))  # the operation meets channels that could be removed
        if self.fault == "unknown op":
            x = torch.renorm(x, 2, 0, 9.0)
        if self.fault == "branch on data" and x.sum() > 0:
            x = x + 1
        return self.head(x)


TOKENS = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
FAILURES: dict[str, tuple[str, dict[str, Any], str]] = {
    # name: fault of the model, arguments of prepare, words of the message
    "forward": ("", {"example_inputs": TOKENS[..., :7]}, "the model's forward fails on the example inputs"),
    "unknown op": ("unknown op", {}, "no dependency rule for aten.renorm.default"),
    "branch on data": ("branch on data", {}, "torch.export cannot trace the model"),
    "bad pin": (
        "",
        {"config": geta.CompressionConfig(pin=("hed",))},
        "no module or parameter 'hed' (did you mean 'head'",
    ),
    "foreign pin": ("", {"config": geta.CompressionConfig(pin=(nn.GELU(),))}, "GELU is not a module of this model"),
    "batch of one": ("", {"example_inputs": TOKENS[:1]}, "must have a batch of at least 2"),
    "no tensor": ("", {"example_inputs": {"x": 3}}, "at least one tensor"),
    "no inputs": ("", {"example_inputs": None}, "must be a tensor, a tuple or a dict, but got NoneType"),
    "no batches": ("", {"calibration": []}, "at least one batch"),
    "not a number": ("", {"calibration": [TOKENS, TOKENS * float("nan")]}, "must be finite"),
    "parametrized": ("parametrized", {}, "must be a plain parameter"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_leaves_nothing_behind(name: str) -> None:
    fault, arguments, words = FAILURES[name]
    model = Faulty(fault).train()
    values = {key: value.clone() for key, value in model.state_dict().items()}
    held = {id(parameter) for parameter in model.parameters()}
    modules = list(model.modules())
    expected = model(TOKENS)
    with pytest.raises(geta.GetaError) as caught:
        geta.prepare(model, **{"example_inputs": TOKENS, "config": WA, **arguments})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(model.modules()) == modules
    assert all(module.training for module in modules)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    assert any(map(parametrize.is_parametrized, modules)) == (name == "parametrized")
    assert model.state_dict().keys() == values.keys()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in values.items())
    assert {id(parameter) for parameter in model.parameters()} == held
    torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["unknown op", "bad pin", "not a number"])
def test_after_a_failure_the_model_can_be_prepared(name: str) -> None:
    fault, arguments, _ = FAILURES[name]
    model = Faulty(fault)
    with pytest.raises(geta.GetaError):
        geta.prepare(model, **{"example_inputs": TOKENS, "config": WA, **arguments})
    model.fault = ""
    prepared = geta.prepare(model, TOKENS, WA)
    assert prepared.num_prunable > 0
    assert geta.finish(prepared).report.native


def test_an_unknown_op_says_where_and_how_to_go_on() -> None:
    with pytest.raises(geta.UnsupportedOpError) as caught:
        geta.prepare(Faulty("unknown op"), TOKENS, WA)
    text = str(caught.value)
    parts = "test_prepare_failures.py", "torch.renorm(x, 2, 0, 9.0)", "register_rule(torch.ops.aten.renorm.default"
    for part in parts:
        assert part in text
