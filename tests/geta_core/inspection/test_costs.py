"""What the inspection says a group saves, against models from which that group was really removed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from orchestration.models import build_small, example_inputs
from tests.geta_core.accounting.counting import flop_counter_macs
from tests.geta_core.compressing import batch, build


class Mixed(nn.Module):
    """A convolution whose channels and places are flattened into one dimension, a transposed and a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.back = nn.ConvTranspose2d(6, 4, 2)
        self.table = nn.Parameter(torch.randn(4, 1, 1))
        self.head = nn.Linear(4 * 5 * 5, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.back(torch.relu(self.depthwise(torch.relu(self.stem(x))))))
        return self.head((y * self.table).flatten(1))


def mixed() -> tuple[nn.Module, Tensor]:
    return Mixed(), torch.randn(2, 3, 8, 8)


def of_name(name: str, **options: Any) -> Callable[[], tuple[nn.Module, Tensor]]:
    return lambda: (build_small(name, **options), example_inputs(name, small=True)[0])


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mixed": mixed,
    "resnet": lambda: (build("resnet"), batch("resnet")),
    "mobilenet": lambda: (build("mobilenet"), batch("mobilenet")),
    "vit": of_name("vit", depth=1),
    "fixed": lambda: (build("fixed"), batch("fixed")),
    "encoder": of_name("encoder", depth=1),
}
FLOATS = geta.CompressionConfig(weight_bits=None)


@cache
def inspected(name: str) -> tuple[nn.Module, Tensor, geta.Inspection]:
    """A model of ``CASES``, its inputs and what the inspection says, once per process."""
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    return model, inputs, geta.inspect(model, inputs, FLOATS, prove=False)


def elements(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_savings_are_those_of_really_removing(name: str) -> None:
    """One group of every family: counted on the module that comes out."""
    model, inputs, found = inspected(name)
    assert found.totals.parameters == elements(model)
    assert found.totals.macs == flop_counter_macs(copy.deepcopy(model), inputs) - products_of_inputs(model, inputs)
    prepared = geta.prepare(copy.deepcopy(model), inputs, FLOATS)
    values = copy.deepcopy(prepared.model.state_dict())
    for family in found.families:
        groups = [group for group in found.groups if group.family == family.id and group.pinned is None]
        assert len(groups) == family.prunable
        if not groups:
            assert family.saved.parameters == 0 and family.saved.macs == 0
            continue
        prepared.model.load_state_dict(values)
        prepared.zero_([groups[-1].id])
        slim = geta.finish(prepared)
        saved = groups[-1].saved
        assert elements(slim.model) == found.totals.parameters - saved.parameters
        assert slim.report.macs == found.totals.macs - saved.macs
        assert saved.parameters > 0
        assert family.saved.parameters >= max(group.saved.parameters for group in groups)


def products_of_inputs(model: nn.Module, inputs: Tensor) -> float:
    """MACs of attention, which definition ``paper`` leaves out."""
    measured = geta.measure(model, inputs)
    return measured.macs_all - measured.macs


@pytest.mark.parametrize("name", ["mixed", "resnet", "vit"])
def test_a_family_saves_what_goes_when_all_of_it_goes(name: str) -> None:
    """Every subset is counted by the accountant alone; the whole family cannot really be removed."""
    model, inputs, found = inspected(name)
    prepared = geta.prepare(copy.deepcopy(model), inputs, FLOATS)
    for family in found.families:
        dead = prepared.none_dead()
        dead[[group.id for group in found.groups if group.family == family.id and group.pinned is None]] = True
        assert prepared.account.parameters(dead) == found.totals.parameters - family.saved.parameters
        layers = prepared.account.layers(dead, {})
        assert sum(layer.macs for layer in layers if layer.counted) == found.totals.macs - family.saved.macs


@pytest.mark.parametrize("name", ["mixed", "resnet", "vit", "encoder"])
def test_the_share_of_parameters_by_marking_each_element(name: str) -> None:
    model, inputs, found = inspected(name)
    prepared = geta.prepare(copy.deepcopy(model), inputs, FLOATS)
    marks = {key: torch.zeros(value.shape, dtype=torch.bool) for key, value in model.named_parameters()}
    for group in prepared.graph.groups:
        if group.pinned is None:
            for member in group.members:
                if member.name in marks:
                    marks[member.name].index_fill_(member.dim, torch.tensor(member.indices), True)
    marked = sum(int(mark.sum()) for mark in marks.values())
    assert found.totals.prunable_parameters == marked
    assert found.totals.prunable_share == marked / elements(model)
    assert 0 < marked < elements(model)


def test_quantizers_change_neither_counts_nor_groups() -> None:
    model, inputs, plain = inspected("resnet")
    config = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8), per_channel=True)
    quantized = geta.inspect(model, inputs, config, prove=False)
    assert plain.totals == quantized.totals
    assert [g.saved for g in plain.groups] == [g.saved for g in quantized.groups]
    assert [f.saved for f in plain.families] == [f.saved for f in quantized.families]
    assert not plain.sites and len(quantized.sites) > 10
