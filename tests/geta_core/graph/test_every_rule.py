"""Every rule is proved on its real operation with random shapes, and no rule is without a proof.

The proof is the definition of removal: with half of the groups zeroed, a net whose parameters are cut by hand gives the
same as the whole one. And where channels have to stay, zeroing them leaves something that what reads them can see.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, cast

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import geta_core as geta
from geta_core.graph import GroupGraph
from geta_core.graph.rules import base, install_all
from tests.geta_core.graph.nets import gap
from tests.geta_core.graph.operators import CASES, Case, Sizes
from tests.geta_core.graph.operators.case import (
    Between,
    Together,
    chosen,
    cut,
    results,
    stem_groups,
    together,
    without,
    zeroed,
)

PARTS = {name: [case for case in CASES if case.layout == name] for name in ("tokens", "signal", "image", "volume")}
sizes = st.builds(Sizes, t=st.integers(4, 6), h=st.integers(4, 6), w=st.integers(4, 6), c=st.sampled_from([8, 12]))


def assert_counts(cases: list[Case], graph: GroupGraph, given: Sizes) -> None:
    for position, case in enumerate(cases):
        free, kept = stem_groups(graph, position)
        name = f"nets.{position}.stem.weight"
        count = sum(len(m.indices) for g in free for m in g.members if m.name == name and m.dim == 0)
        assert len(kept) + count > 0, f"{case.name}: the operation is not there"
        if case.free == "none":
            assert count == 0, f"{case.name}: {count} channels may go"
        else:
            assert count == given.c, f"{case.name}: {count} of {given.c} may go; {[g.pinned for g in kept][:1]}"
            assert (len(free) == given.c) == (case.free == "all"), f"{case.name}: {len(free)} groups"


def assert_cut_equals_zeroed(net: Together, inputs: Any, graph: GroupGraph, cases: list[Case], seed: int) -> None:
    dead = chosen(graph, torch.Generator().manual_seed(seed))
    groups = [group for group in graph.groups if group.pinned is None]
    gone = [group for group, flag in zip(groups, dead.tolist(), strict=True) if flag]
    whole = zeroed(net, gone)
    left, dense = results(whole, inputs), results(net, inputs)
    right = results(cut(whole, gone), inputs)
    for case, a, b, c in zip(cases, left, right, dense, strict=True):
        assert gap([a], [b]) <= 1e-10, f"{case.name}: cut is not what is zeroed"
        assert case.free == "none" or not torch.equal(a, c), f"{case.name}: zeroing changes nothing"


def assert_must_stay(net: Together, inputs: Any, cases: list[Case]) -> None:
    """A channel that has to stay, set to zero, is not the same as the channel cut out of both maps."""
    for position, case in enumerate(cases):
        if case.free != "none" or case.strict:
            continue
        index = 1  # not the first, before which a running sum is zero
        inner, x = cast(Between, net.nets[position]), inputs[position]
        whole = copy.deepcopy(inner)
        whole.stem.weight.data[index] = 0.0
        whole.stem.bias.data[index] = 0.0
        small = without(inner, {("stem.weight", 0): [index], ("stem.bias", 0): [index], ("head", 0): [index]})
        with torch.no_grad():
            left, right = whole(x), small(x)
        assert gap([left], [right]) > 1e-6, f"{case.name}: the pin is not needed"


@pytest.mark.parametrize("layout", PARTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_removal_on_random_shapes(layout: str) -> None:
    cases = PARTS[layout]

    # Each example is every case at once: a smaller one would cost as much to find as it says.
    @settings(max_examples=2, deadline=None, phases=[Phase.generate])
    @given(given=sizes, seed=st.integers(0, 2**16))
    def proved(given: Sizes, seed: int) -> None:
        torch.manual_seed(seed)
        net, inputs, graph = together(cases, given)
        assert_counts(cases, graph, given)
        assert_cut_equals_zeroed(net, inputs, graph, cases, seed)
        assert_must_stay(net, inputs, cases)

    proved()


@pytest.mark.parametrize("layout", PARTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_not_left_at_zero_is_zeroed_where_it_is_consumed(layout: str) -> None:
    """A channel that an operation makes something of goes where what reads it is learned: its rows become zero."""
    sizes_, generator = Sizes(4, 5, 6, 8), torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    _, _, fixed = together(PARTS[layout], sizes_)
    open_ = [position for position in range(len(PARTS[layout])) if _lost(fixed, position)]
    assert open_ or layout != "tokens"
    if not open_:
        return
    cases = [PARTS[layout][position] for position in open_]
    net, inputs, graph = together(cases, sizes_, learned=True)
    for position, case in enumerate(cases):
        free, kept = stem_groups(graph, position)
        assert free and not kept, f"{case.name}: {[group.pinned for group in kept][:1]}"
        assert all(_role(group, f"nets.{position}.head") == "PRODUCE" for group in free), case.name
    dead = chosen(graph, generator)
    gone = [g for g, flag in zip(graph.groups[: graph.num_prunable], dead.tolist(), strict=True) if flag]
    left, right = results(zeroed(net, gone), inputs), results(cut(net, gone), inputs)
    dense = results(net, inputs)
    for case, a, b, c in zip(cases, left, right, dense, strict=True):
        assert gap([a], [b]) <= 1e-10, f"{case.name}: cut is not what is zeroed"
        assert not torch.equal(a, c), f"{case.name}: zeroing changes nothing"


def _lost(graph: GroupGraph, position: int) -> bool:
    _, kept = stem_groups(graph, position)
    reasons = [str(group.pinned) for group in kept]
    return bool(reasons) and all(reason.startswith("is not exactly zero where it is consumed") for reason in reasons)


def _role(group: geta.Group, name: str) -> str:
    return next((member.role for member in group.members if member.name == name), "")


def names(target: Any) -> set[str]:
    """An operation by the names under which a rule may stand: its own and its packet's."""
    packet = getattr(target, "overloadpacket", None)
    return {str(target), *([str(packet)] if packet is not None else [])}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_rule_is_without_a_proof() -> None:
    """Of every entry of the table of rules the real operation stands in one of the nets above, on labelled values."""
    install_all()
    proved = {str(torch.Tag.pointwise)}
    for cases in PARTS.values():
        _, _, graph = together(cases, Sizes(4, 4, 4, 8))
        for node in graph.capture.graph.nodes:
            if node.op != "call_function":
                continue
            # What an operation in place was given is gone by now.
            if graph.first.tracked(node) or node.target._schema.is_mutable:
                proved |= names(node.target)
    missing = sorted(
        str(target)
        for target in base._RULES
        if str(target) not in proved and target is not operator.getitem and not geta_tests(target)
    )
    assert not missing, f"{len(missing)} rules have no proof: {missing}"


def geta_tests(target: Any) -> bool:
    """Operations that other tests register."""
    return not str(target).startswith(("aten.", "geta."))


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({(case.name, case.layout) for case in CASES}) == len(CASES)


def test_a_rule_that_returns_too_few_results_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the labels of what it returns would be lost on the way."""
    install_all()
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))
    geta.register_rule(torch.ops.aten.sort.default, labels=lambda ctx, node: ctx.layers(node.args[0]))
    case = Case("sorted", lambda net, y: y.sort(1)[0])
    with pytest.raises(geta.GetaError, match=r"the rule of aten\.sort\.default must return a list with the layers of"):
        together([case], Sizes(4, 4, 4, 8))
