"""Models with more than layers in a row: constants, ties, unused parts, nested and named inputs, other types."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph import ExampleInputs
from tests.geta_core.artifact.saved import manifest_of, tensors_of
from tests.geta_core.compressing import some_groups

CONFIG = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8), initial_bits=8)
Pair = namedtuple("Pair", ["first", "second"])


def finished(model: nn.Module, inputs: Any, config: geta.CompressionConfig = CONFIG) -> geta.Compressed:
    prepared = geta.prepare(model, inputs, config)
    prepared.zero_(some_groups(prepared))
    return geta.finish(prepared)


def stored_bytes(folder: Path) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(folder).values())


class Extras(nn.Module):
    """Everything that is not the weight of a layer that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(2, 2)
        self.scale = torch.tensor([1.0, 2.0, 3.0])
        self.register_buffer("offset", torch.ones(3), persistent=False)
        self.register_buffer("gain", torch.full((8,), 0.5))
        self.register_buffer("counter", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x)) * self.gain
        return self.second(hidden) * self.scale + torch.tensor([3.0, 4.0, 5.0]) + self.offset


def test_constants_and_buffers_of_every_kind(tmp_path: Path) -> None:
    model = Extras()
    model.offset.add_(0.25)
    x = torch.randn(4, 6)
    compressed = finished(model, x)
    assert compressed.report.removed == 3
    compressed.save(tmp_path)
    assert stored_bytes(tmp_path) == compressed.report.bytes
    kinds = {name: entry["kind"] for name, entry in manifest_of(tmp_path)["tensors"].items()}
    assert kinds["offset"] == "unsaved"
    assert kinds["scale"] == "constant"
    assert list(kinds.values()).count("constant") == 2
    graph, filled = geta.load(tmp_path), geta.load(tmp_path, Extras())
    own = {key for key in compressed.model.state_dict() if not key.endswith("_extra_state")}
    assert graph.state_dict().keys() == own
    assert filled.state_dict().keys() == compressed.model.state_dict().keys()
    for loaded in (graph, filled):
        assert torch.equal(loaded(x), compressed.model(x))
        assert torch.equal(loaded.get_buffer("offset"), model.offset)
        assert torch.equal(loaded.get_parameter("idle.weight"), compressed.model.idle.weight)
        assert loaded.get_buffer("gain").shape == (5,)
        assert int(loaded.get_buffer("counter")) == 7


class Tied(nn.Module):
    """The embedding's weight is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embedding(index))))


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_tied_weight_is_stored_once_and_stays_tied(tmp_path: Path, per_channel: bool) -> None:
    index = torch.arange(10).view(2, 5)
    config = geta.CompressionConfig(weight_bits=(4, 8), initial_bits=8, per_channel=per_channel)
    compressed = finished(Tied(), index, config)
    compressed.save(tmp_path)
    file = tensors_of(tmp_path)
    assert file["embedding.weight"].dtype == torch.uint8
    assert "head.weight" not in file
    assert stored_bytes(tmp_path) == compressed.report.bytes
    for loaded in (geta.load(tmp_path), geta.load(tmp_path, Tied())):
        assert loaded.get_parameter("head.weight") is loaded.get_parameter("embedding.weight")
        assert torch.equal(loaded.get_parameter("head.weight"), compressed.model.head.weight)
        assert torch.equal(loaded(index), compressed.model(index))


class Nested(nn.Module):
    """Takes tensors in containers and by keyword, and returns containers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, pair: tuple[Tensor, list[Tensor]], *, more: dict[str, Tensor], none: None = None) -> Any:
        x = pair[0] + pair[1][0] + more["m"]
        y = self.b(torch.relu(self.a(x)))
        return OrderedDict(y=y, none=None, rest=Pair(y + 1, [y * 2, (y, 3)]))


def test_nested_inputs_and_outputs(tmp_path: Path) -> None:
    def inputs(size: int) -> dict[str, Any]:
        x = torch.randn(size, 4)
        return {"pair": (x, [x]), "more": {"m": x}, "none": None}

    compressed = finished(Nested(), inputs(2))
    compressed.save(tmp_path)
    graph = geta.load(tmp_path)
    for size in (2, 5):
        given = inputs(size)
        found, expected = graph(**given), compressed.model(**given)
        assert list(found) == ["y", "none", "rest"]
        assert found["none"] is None
        assert found["rest"][1][1][1] == 3
        assert isinstance(found["rest"], tuple)
        leaves = [torch.utils._pytree.tree_leaves(result) for result in (found, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*leaves, strict=True) if isinstance(a, Tensor))


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, *parts: Tensor, scale: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(sum(parts[1:], parts[0])))) * scale


def test_any_number_of_positional_inputs(tmp_path: Path) -> None:
    # The example holds one tensor in three places; that does not make the places one.
    inputs = ExampleInputs((torch.randn(2, 4),) * 3, {"scale": torch.ones(2, 3)})
    compressed = geta.finish(geta.prepare(Many(), inputs))
    compressed.save(tmp_path)
    parts, scale = [torch.randn(5, 4) for _ in range(3)], torch.randn(5, 3)
    assert torch.equal(geta.load(tmp_path)(*parts, scale=scale), compressed.model(*parts, scale=scale))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).to(dtype)

    x = torch.randn(3, 6, dtype=dtype)
    compressed = finished(build(), x, geta.CompressionConfig(weight_bits=(4, 12), initial_bits=12))
    compressed.save(tmp_path)
    assert tensors_of(tmp_path)["0.weight"].numel() == math.ceil(
        compressed.model.get_parameter("0.weight").numel() * 12 / 8
    )
    assert stored_bytes(tmp_path) == compressed.report.bytes
    for loaded in (geta.load(tmp_path), geta.load(tmp_path, build())):
        for name, parameter in compressed.model.named_parameters():
            assert loaded.get_parameter(name).dtype == dtype
            assert torch.equal(loaded.get_parameter(name), parameter)
        assert torch.equal(loaded(x), compressed.model(x))


def test_a_learned_exponent(tmp_path: Path) -> None:
    config = geta.CompressionConfig(
        weight_bits=(4, 8), activation_bits=(4, 8), initial_bits=8, learn_activation_exponent=True
    )
    x = torch.randn(3, 6)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    prepared = geta.prepare(model, x, config)
    with torch.no_grad():
        for position, site in enumerate(prepared.sites):
            site.quantizer.t.fill_(0.8 + 0.1 * position)
            site.quantizer.set_bits_(5 + position % 3)
    compressed = geta.finish(prepared)
    compressed.save(tmp_path)
    dense = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    for loaded in (geta.load(tmp_path), geta.load(tmp_path, dense)):
        assert torch.equal(loaded(x), compressed.model(x))
        assert float(loaded.get_parameter("2.input_quantizer.t").detach()) == pytest.approx(1.1)
    assert [float(site.quantizer.bits()) for site in prepared.sites] == [5, 6, 7, 5]


def test_only_some_inputs_are_quantized(tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(torch.relu(self.a(x)), self.b.weight, self.b.bias)

    compressed = finished(Half(), x := torch.randn(2, 4))
    assert list(compressed.report.unquantized) == ["b.input"]
    compressed.save(tmp_path)
    assert [entry["module"] for entry in manifest_of(tmp_path)["inputs"]] == ["a"]
    for loaded in (geta.load(tmp_path), geta.load(tmp_path, Half())):
        assert torch.equal(loaded(x), compressed.model(x))


def test_the_whole_model_is_one_layer(tmp_path: Path) -> None:
    compressed = finished(nn.Linear(4, 3), x := torch.randn(2, 4))
    compressed.save(tmp_path)
    for loaded in (geta.load(tmp_path), geta.load(tmp_path, nn.Linear(4, 3))):
        assert torch.equal(loaded(x), compressed.model(x))
