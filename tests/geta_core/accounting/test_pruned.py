"""The account of what will be removed, against the slimmed model counted anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import geta_core as geta
from tests.geta_core.accounting.counting import flop_counter_macs
from tests.geta_core.compressing import NETS, batch, build, compressed_net, prepared_net, some_groups


@cache
def fresh(net: str) -> geta.Prepared:
    """A net prepared without quantizers and with nothing zeroed: not to be changed."""
    return geta.prepare(build(net), batch(net), geta.CompressionConfig(weight_bits=None))


@contextmanager
def zeroed(net: str, groups: Callable[[geta.Prepared], list[int]]) -> Iterator[geta.Prepared]:
    """The fresh net with some groups at zero, until the end of the block."""
    prepared = fresh(net)
    before = copy.deepcopy(prepared.model.state_dict())
    try:
        prepared.zero_(groups(prepared))
        yield prepared
    finally:
        prepared.model.load_state_dict(before)


@pytest.mark.parametrize("net", NETS)
@settings(max_examples=3)
@given(share=st.floats(0.1, 0.9), seed=st.integers(0, 10_000))
def test_the_account_is_that_of_the_slimmed_model(net: str, share: float, seed: int) -> None:
    with zeroed(net, lambda prepared: some_groups(prepared, share, seed)) as prepared:
        predicted, slim = prepared.measure(), geta.finish(prepared)
    assert predicted.macs_all == flop_counter_macs(slim.model, batch(net))
    assert predicted.parameters == sum(parameter.numel() for parameter in slim.model.parameters())
    assert predicted.bytes == sum(
        t.numel() * t.element_size() for t in (*slim.model.parameters(), *slim.model.buffers())
    )
    assert slim.report.measurement == predicted
    if slim.report.native:
        anew = geta.measure(slim.model, batch(net))
        assert anew.as_dict() == predicted.as_dict()


def test_every_family_is_counted_alone() -> None:
    # One group of each family goes, one family at a time: no row may miss a cut.
    for net in ("mobilenet", "vit", "encoder"):
        families = fresh(net).family
        for family in range(int(families.max()) + 1):
            first = int(torch.nonzero(families == family)[0])
            with zeroed(net, lambda _, first=first: [first]) as prepared:  # type: ignore[misc]
                predicted, slim = prepared.measure(), geta.finish(prepared)
            assert predicted.macs_all == flop_counter_macs(slim.model, batch(net))
            assert predicted.macs_all < fresh(net).measure().macs_all


@pytest.mark.parametrize("net", ["resnet", "vit", "fixed"])
def test_quantized_rows_are_those_of_the_slimmed_weights(net: str) -> None:
    compressed = compressed_net(net, "WA")
    rows = {row.name: row for row in compressed.report.layers if row.counted}
    sites = {site.name: site for site in prepared_net(net, "WA").sites}
    weights = dict(compressed.model.named_parameters())
    assert len(rows) == len([row for row in compressed.report.layers if row.counted])
    for name, row in rows.items():
        assert row.weights == weights[name].numel()
        assert row.weight_bits == float(sites[name].quantizer.bits())
        assert row.input_bits == float(sites[name.removesuffix("weight") + "input"].quantizer.bits())
        assert row.bops == row.macs * row.weight_bits * row.input_bits
    assert rows.keys() == {site for site in sites if site.endswith("weight")}
    assert compressed.report.measurement.bops == sum(row.bops for row in rows.values())


def test_heads_that_a_shared_layer_never_sees_are_not_counted() -> None:
    # The layer runs once per head: fewer heads are fewer runs of a weight that keeps its size.
    class PerHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.split, self.each, self.out = nn.Linear(6, 4 * 5), nn.Linear(5, 5, bias=False), nn.Linear(4 * 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = torch.relu(self.each(torch.relu(self.split(x)).unflatten(-1, (4, -1))))
            return self.out(heads.flatten(1))

    x = torch.randn(2, 6)
    prepared = geta.prepare(PerHead(), x, geta.CompressionConfig(weight_bits=None))
    heads = [group.id for group in prepared.graph.groups if group.pinned is None]
    prepared.zero_(heads[:1])
    predicted, slim = prepared.measure(), geta.finish(prepared)
    assert predicted.macs == flop_counter_macs(slim.model, x) < fresh_macs(PerHead(), x)


def fresh_macs(model: nn.Module, x: torch.Tensor) -> float:
    return geta.measure(model, x).macs
