"""Names decide nothing: with every module, class and parameter renamed at random a net has the same groups."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.prepared import Prepared
from orchestration.models import build_small, example_inputs
from tests.geta_core.compressing import NETS, batch, build
from tests.geta_core.graph.nets import image, image_net, parameter, token_net, tokens

Groups = set[tuple[bool, bool, frozenset[tuple[int, int, tuple[int, ...], str]]]]

MODELS = (
    "vgg7",
    "resnet20",
    "resnet18",
    "resnet50",
    "densenet_bc",
    "mobilenetv2",
    "seresnet18",
    "unet",
    "resnet18_gn",
    "mlp",
    "vit",
    "encoder",
)


def gated(net: Any, y: Tensor) -> Tensor:
    a, b = net.wide(net.norm(y)).chunk(2, -1)
    return y + net.narrow(a.sigmoid() * b) * net.scale


def split(net: Any, y: Tensor) -> Tensor:
    first, second = y.split(3, 1)
    return torch.cat([net.a(first).relu(), net.b(second), y], 1)


SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "gated": (
        lambda: token_net(
            gated, norm=nn.LayerNorm(6), wide=nn.Linear(6, 10), narrow=nn.Linear(5, 6), scale=parameter(6)
        ),
        tokens,
    ),
    "split": (lambda: image_net(split, out=14, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1)), image),
    "tied": (
        lambda: token_net(lambda net, y: y + (y @ net.table).relu() @ net.table.t(), table=parameter(6, 9)),
        tokens,
    ),
    **{f"{kind} recurrent": (lambda kind=kind: Sequence(kind), tokens) for kind in ("LSTM", "GRU")},
    **{name: (lambda name=name: build(name), lambda name=name: batch(name)) for name in NETS if name not in MODELS},
    **{name: (lambda name=name: build_small(name), lambda name=name: _example(name)) for name in MODELS},
}


class Sequence(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head = getattr(nn, kind)(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(x)[0])
        return result


def _example(name: str) -> Tensor:
    (x,) = example_inputs(name, batch=2, small=True)
    return x


def rename_(model: nn.Module, seed: int) -> nn.Module:
    """Give every submodule and tensor a random name, and every class one; the old names are found as attributes."""
    generator = random.Random(seed)
    aliases: dict[type[nn.Module], type[nn.Module]] = {}

    def fresh() -> str:
        return "".join(generator.choice("abcdefghij") for _ in range(8))

    for module in list(model.modules()):
        names = {old: fresh() for held in (module._modules, module._parameters, module._buffers) for old in held}
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            _move(module._modules, names)
            continue
        kind = type(module)
        if kind.__module__.startswith("torch.nn"):
            continue
        if kind not in aliases:
            aliases[kind] = type(fresh(), (kind,), {"__getattr__": _lookup})
        for held in (module._modules, module._parameters, module._buffers):
            _move(held, names)
        module.__dict__["_renamed"] = names
        module.__class__ = aliases[kind]
    return model


def _move(held: dict[str, Any], names: dict[str, str]) -> None:
    for old in list(held):
        held[names[old]] = held.pop(old)


def _lookup(self: nn.Module, name: str) -> Any:
    return nn.Module.__getattr__(self, self.__dict__.get("_renamed", {}).get(name, name))


def groups(prepared: Prepared, order: dict[int, int]) -> Groups:
    """The groups by the position of their tensors in the model instead of their names."""
    tensors = prepared.graph.capture.tensors
    return {
        (
            group.pinned is None,
            group.inexact,
            frozenset((order.get(id(tensors[m.name]), -1), m.dim, m.indices, m.role) for m in group.members),
        )
        for group in prepared.graph.groups
    }


def prepared_groups(model: nn.Module, x: Tensor) -> tuple[Groups, set[str]]:
    order = {id(tensor): i for i, tensor in enumerate((*model.parameters(), *model.buffers()))}
    prepared = geta.prepare(model, x, geta.CompressionConfig(weight_bits=None))
    return groups(prepared, order), set(dict(model.named_parameters()))


@pytest.mark.parametrize("name", SMALL)
def test_renamed(name: str) -> None:
    make, example = SMALL[name]
    found, names = prepared_groups(make().eval(), example())
    renamed, other = prepared_groups(rename_(make().eval(), seed=len(name)), example())
    assert len(names) == len(other)
    assert any(free for free, _, _ in found)
    assert found == renamed
    assert names.isdisjoint(other)


def test_twenty_nets() -> None:
    assert len(SMALL) >= 20
