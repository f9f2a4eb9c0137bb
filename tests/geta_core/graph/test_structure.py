"""How parameters are held and called: ties, shared modules, views, inputs and outputs of any shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geta_core as geta
from tests.geta_core.graph.nets import (
    Body,
    Net,
    assert_sound,
    choose,
    image,
    image_net,
    parameter,
    pinned,
    prepared64,
    prunable,
    rows,
    run,
    token_net,
    tokens,
)


def test_what_depends_on_no_parameter_needs_no_rule() -> None:
    """cumsum, sort and argmax have no rule; on the inputs alone they need none."""

    def body(net: Any, x: Tensor) -> Tensor:
        order = x.mean((2, 3)).sort(1)[0].cumsum(1)
        places = x.flatten(1).argmax(1) % 5
        y = net.stem(x.cumsum(2)).relu() * order.sum(1)[:, None, None, None]
        return net.head(y.mean((2, 3))) + F.one_hot(places, 5)

    net = Net(body, stem=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 5))
    prepared = prepared64(net, image())
    assert len(prunable(prepared, "stem.weight")) == 6
    assert_sound(prepared, image())


class ReadAgain(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        y = y.relu()
        y[:, :3].mul_(2)
        return y


def written_through_a_view(net: Any, y: Tensor) -> Tensor:
    return y.relu().view(y.shape[0], -1, 64).mul_(2).view(y.shape[0], -1, 8, 8)


def written_in_place(net: Any, y: Tensor) -> Tensor:
    y = y.relu()
    kept = y * 2
    y.add_(kept)
    y *= 3
    return y.clamp_(max=100)


def test_in_place_through_a_view_whose_base_is_read_again() -> None:
    prepared = prepared64(image_net(lambda net, y: net.inner(y), inner=ReadAgain()), image())
    reasons = {group.pinned for group in prepared.graph.groups}
    assert "is written in place into a part of a value, at inner (aten.mul_.Tensor)" in reasons
    assert len(prunable(prepared, "stem.weight")) < 6
    assert_sound(prepared, image())


@pytest.mark.parametrize("body", [written_through_a_view, written_in_place])
def test_in_place_elsewhere(body: Body) -> None:
    prepared = prepared64(image_net(body), image())
    assert len(prunable(prepared, "stem.weight")) == 6
    assert_sound(prepared, image())


class Tied(nn.Module):
    """An embedding that is also the output layer, and a layer in between."""

    def __init__(self, *, direct: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8))
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embedding.weight
        self.direct = direct

    def forward(self, index: Tensor) -> Tensor:
        y = self.embedding(index)
        return self.head(F.gelu(y) if self.direct else y + self.mlp(y))


@pytest.mark.parametrize("direct", [True, False])
def test_tied_weights_are_one_tensor(direct: bool) -> None:
    index = torch.randint(11, (2, 7))
    prepared = prepared64(Tied(direct=direct), index)
    groups = prunable(prepared, "embedding.weight", 1)
    assert len(groups) == 8
    assert not prunable(prepared, "embedding.weight", 0), "every word can be read and predicted"
    assert all(member.name != "head.weight" for group in prepared.graph.groups for member in group.members)
    compressed = assert_sound(prepared, index)
    assert compressed is not None
    model = compressed.model
    assert model.head.weight is model.embedding.weight
    assert model.embedding.embedding_dim == model.head.in_features == 4


@pytest.mark.parametrize("kind", ["weights", "weights and inputs"])
def test_tied_weights_stay_tied_through_quantizers(kind: str) -> None:
    index = torch.randint(11, (2, 7))
    bits = {"activation_bits": (4, 8)} if kind == "weights and inputs" else {}
    prepared = geta.prepare(Tied(direct=False), index, geta.CompressionConfig(weight_bits=(4, 8), **bits))
    assert len(prunable(prepared, "embedding.weight", 1)) == 8
    prepared.zero_(choose(prepared, 0))
    model = geta.finish(prepared).model
    assert model.head.weight is model.embedding.weight


def test_a_module_that_is_called_twice() -> None:
    """Rows and columns of a layer that reads its own output are one group."""
    net = image_net(lambda net, y: net.b(net.b(y.relu()).relu()).relu(), b=nn.Conv2d(6, 6, 1))
    prepared = prepared64(net, image())
    (group, *rest) = prunable(prepared, "stem.weight")
    assert len(rest) == 5
    assert {(m.name, m.dim) for m in group.members} == {
        ("stem.weight", 0),
        ("stem.bias", 0),
        ("b.weight", 0),
        ("b.weight", 1),
        ("b.bias", 0),
        ("last.weight", 1),
    }
    assert_sound(prepared, image())


def test_a_module_that_sees_two_values() -> None:
    """What reads two values ties them: the same channel goes from both."""
    net = image_net(
        lambda net, y: torch.cat([net.c(y.relu()).relu(), net.c(net.b(y).relu()).relu()], 1),
        out=10,
        b=nn.Conv2d(6, 6, 1),
        c=nn.Conv2d(6, 5, 1),
    )
    prepared = prepared64(net, image())
    assert prunable(prepared, "stem.weight") == prunable(prepared, "b.weight")
    (group, *rest) = prunable(prepared, "c.weight")
    assert len(rest) == 4
    assert {(m.name, m.indices) for m in group.members if m.name == "last.weight"} == {("last.weight", (0, 5))}
    assert_sound(prepared, image())


class Several(nn.Module):
    """Two keyword inputs; a hidden value, a tuple and a number in a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Conv2d(3, 6, 3), nn.Linear(8, 6)
        self.shown, self.hidden, self.head = nn.Linear(6, 4), nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, *, picture: Tensor, words: Tensor, scale: float = 1.0) -> dict[str, Any]:
        y = self.image(picture).mean((2, 3)) * torch.tanh(self.text(words).sum(1))
        shown = self.shown(y).relu()
        return {"logits": (self.head(self.hidden(y).relu()) * scale, shown), "shown": shown.sum(1), "scale": scale}


def test_keyword_inputs_and_several_outputs() -> None:
    inputs = {"picture": image(), "words": torch.randn(2, 4, 8), "scale": 0.5}
    prepared = prepared64(Several(), inputs)
    counts = {name: len(prunable(prepared, f"{name}.weight")) for name in ("image", "text", "shown", "hidden", "head")}
    assert counts == {"image": 6, "text": 6, "shown": 0, "hidden": 7, "head": 0}
    assert {g.pinned for g in pinned(prepared, "shown.weight")} == {"reaches the model's output"}
    prepared.zero_(choose(prepared, 0))
    compressed = geta.finish(prepared)
    data = {key: value.double() if isinstance(value, Tensor) else value for key, value in inputs.items()}
    more = {key: rows(value, 5) if isinstance(value, Tensor) else value for key, value in data.items()}
    for batch in (data, more):
        for left, right in zip(run(prepared.model, batch), run(compressed.model, batch), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


def test_positional_inputs_without_names() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 6), nn.Linear(6, 5)

        def forward(self, *xs: Tensor) -> Tensor:
            joined = self.stem(sum(xs[1:], xs[0])).relu()
            return self.head(joined.reshape(-1, 42).reshape(-1, 7, 6))

    inputs = (tokens(), tokens(), tokens())
    prepared = prepared64(Summed(), inputs)
    compressed = assert_sound(prepared, inputs)
    assert compressed is not None and not compressed.report.native


def test_a_batch_size_that_the_trace_cannot_keep_open() -> None:
    """len(x) is a number to torch.export; where the graph is needed this is said, not found at the next batch."""
    net = token_net(lambda net, y: y.relu().view(len(y), 7, 6))
    prepared = prepared64(net, tokens())
    prepared.zero_(choose(prepared, 0))
    with pytest.raises(geta.PruningError, match=r"batch size 2 as a number.*len\(x\) does, x.shape\[0\] does not"):
        geta.finish(prepared)


def test_parameters_that_nothing_reads() -> None:
    net = token_net(lambda net, y: y.relu(), idle=nn.Linear(6, 6), alone=parameter(6))
    prepared = prepared64(net, tokens())
    assert not any(m.name in ("idle.weight", "alone") for g in prepared.graph.groups for m in g.members)
    prepared.zero_(choose(prepared, 0))
    model = geta.finish(prepared).model
    assert model.idle.weight.shape == (6, 6)
    assert model.stem.weight.shape == (3, 8)


def test_frozen_parameters_stay_frozen() -> None:
    net = token_net(lambda net, y: y.relu())
    net.stem.weight.requires_grad_(False)
    prepared = prepared64(net, tokens())
    prepared.zero_(choose(prepared, 0))
    model = geta.finish(prepared).model
    assert not model.stem.weight.requires_grad and model.stem.bias.requires_grad


def test_the_slots_say_what_the_groups_say() -> None:
    """A slot's numbers are the groups' PRODUCE members, for every group that may go and no other."""
    net = image_net(lambda net, y: net.b(net.norm(y).relu()).sigmoid(), norm=nn.BatchNorm2d(6), b=nn.Conv2d(6, 6, 1))
    prepared = prepared64(net, image())
    said = {
        (m.name, m.dim, index, group.id)
        for group in prepared.graph.groups[: prepared.num_prunable]
        for m in group.members
        if m.role == "PRODUCE"
        for index in m.indices
    }
    held = {
        (slot.name, slot.dim, index, number)
        for slot in prepared.slots
        for index, number in enumerate(slot.group.tolist())
        if number >= 0
    }
    assert said == held
    assert [group.id for group in prepared.graph.groups] == list(range(len(prepared.graph.groups)))
    assert all(group.pinned is None for group in prepared.graph.groups[: prepared.num_prunable])
    assert prepared.family.shape == (prepared.num_prunable,)
    families = {group.family for group in prepared.graph.groups[: prepared.num_prunable]}
    assert len(families) == int(prepared.family.max()) + 1


def test_zero_groups_counts_from_the_parameters() -> None:
    prepared = prepared64(image_net(lambda net, y: y.relu()), image())
    assert prepared.zero_groups() == 0
    groups = prunable(prepared, "stem.weight")
    prepared.zero_([groups[1].id, groups[4]])
    assert prepared.zero_groups() == 2
    assert prepared.zero_mask().nonzero().flatten().tolist() == [groups[1].id, groups[4].id]
    with torch.no_grad():
        prepared.model.stem.bias[4] = 1e-30  # type: ignore[union-attr, index]
    assert prepared.zero_mask().nonzero().flatten().tolist() == [groups[1].id]
