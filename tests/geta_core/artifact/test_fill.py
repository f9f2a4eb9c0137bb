"""Filling a dense instance: what does not fit is refused, and the given model stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import geta_core as geta
from orchestration.models import build_small
from orchestration.models.resnet_cifar import CifarResNet
from tests.geta_core.compressing import batch, build

Saved = Callable[[str, str], Path]


def prepared_already() -> nn.Module:
    return geta.prepare(build("encoder"), batch("encoder"), geta.CompressionConfig(activation_bits=(4, 8))).model


def without_a_layer() -> nn.Module:
    model = build("encoder")
    model.head = nn.Identity()
    return model


MISFITS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "another class": ("encoder", lambda: build("vit")),
    "another width": ("encoder", lambda: build_small("encoder", depth=1, width=16)),
    "a layer more": ("encoder", lambda: build_small("encoder", depth=2)),
    "a layer less": ("encoder", without_a_layer),
    "prepared already": ("encoder", prepared_already),
    "one layer": ("encoder", lambda: nn.Linear(3, 3)),
    "fewer channels": ("resnet", lambda: CifarResNet(1, 10, 3, 2)),
    "another number of classes": ("resnet", lambda: CifarResNet(1, 7, 3, 4)),
}


def picture(model: nn.Module) -> list[object]:
    """Everything of a model that loading could change, tensors by identity."""
    found: list[object] = []
    for name, module in model.named_modules():
        held = (*module._parameters.items(), *module._buffers.items())
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (int, str, float, tuple))}
        hooks = (len(module._forward_pre_hooks), len(module._forward_hooks))
        found.append((name, type(module), plain, hooks, [(key, id(value)) for key, value in held]))
    return found


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_model_that_does_not_fit_stays_as_it_was(saved: Saved, misfit: str) -> None:
    net, make = MISFITS[misfit]
    model = make()
    before, values = picture(model), copy.deepcopy(model.state_dict())
    with pytest.raises(geta.ArtifactError, match="the given model does not fit the artifact: ") as caught:
        geta.load(saved(net, "WA"), model)
    assert "\n" not in str(caught.value)
    assert picture(model) == before
    after = model.state_dict()
    assert after.keys() == values.keys()
    assert all(torch.equal(after[key], value) for key, value in values.items())


def test_another_initialisation_is_overwritten(saved: Saved) -> None:
    torch.manual_seed(99)
    other = CifarResNet(1, 10, 3, 4).train()
    loaded = geta.load(saved("resnet", "WA"), other)
    x = batch("resnet", 3)
    assert torch.equal(loaded(x), geta.load(saved("resnet", "WA"))(x))


def test_a_filled_model_can_be_trained_further(saved: Saved) -> None:
    model = geta.load(saved("encoder", "WA"), build("encoder")).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(batch("encoder", 4)).square().sum().backward()
    optimizer.step()
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert {"layers.0.linear1.weight", "layers.0.self_attn.in_proj_weight", "head.weight"} <= set(moved)
