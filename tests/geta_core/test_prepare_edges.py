"""A prepared model that is copied, one whose layers never run, one whose preparation fails, one that moves."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import geta_core as geta

QUANTIZED = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8), initial_bits=8)


class Attending(nn.Module):
    """Attention, a layer behind it, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 1, enable_nested_tensor=True
        )
        self.head, self.idle = nn.Linear(8, 3), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Placed(nn.Module):
    """Makes tensors on its input's device, and has a width that its class writes as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.place = nn.Linear(4, 16), nn.Linear(16, 3), nn.Embedding(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        places = self.place(torch.arange(6, device=x.device)) + torch.ones(6, 1, device=x.device)
        return self.second(torch.relu(self.first(x + places)).view(-1, 6, 4, 4).reshape(-1, 6, 16))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_a_copy_of_a_prepared_model_is_independent() -> None:
    first = geta.prepare(mlp(), torch.randn(4, 4), QUANTIZED)
    first.zero_([0, 1])
    second = copy.deepcopy(first)
    second.zero_([2])
    with torch.no_grad():
        second.sites[0].quantizer.set_bits_(torch.tensor(4.0))
    assert (first.zero_groups(), second.zero_groups()) == (2, 3)
    assert first.bits() == {site.name: 8.0 for site in first.sites} != second.bits()
    assert {id(p) for p in first.model.parameters()}.isdisjoint(id(p) for p in second.model.parameters())
    assert {id(slot.parameter) for slot in second.slots} <= {id(p) for p in second.model.parameters()}
    small, smaller = geta.finish(first), geta.finish(second)
    assert (small.report.removed, smaller.report.removed) == (2, 3)
    assert smaller.report.bytes < small.report.bytes


def test_layers_that_never_run_are_named_and_left_alone(tmp_path: Path) -> None:
    model = Attending()
    idle = model.idle.weight.detach().clone()
    prepared = geta.prepare(model, torch.randn(2, 3, 8), QUANTIZED)
    assert set(prepared.unquantized) == {"idle.weight", "idle.input"}
    assert prepared.unquantized["idle.weight"] == "no value passes through it in the captured graph"
    assert not any(site.module is model.idle for site in prepared.sites)
    assert dict(model.named_parameters())["idle.weight"] is model.idle.weight
    geta.finish(prepared).save(tmp_path / "artifact")
    assert torch.equal(load_file(tmp_path / "artifact" / "model.safetensors")["idle.weight"], idle)


def test_a_failed_preparation_leaves_the_model_as_it_was() -> None:
    model, x = Attending(), torch.randn(2, 3, 8)
    expected = model.eval()(x)
    before = {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    with pytest.raises(geta.ConfigError) as caught:
        geta.prepare(model, x, geta.CompressionConfig(activation_bits=(4, 8), pin=("encoder.layers.0.selfattn",)))
    assert str(caught.value) == (
        "pin: there is no module or parameter 'encoder.layers.0.selfattn' (did you mean 'encoder.layers.0.self_attn'?)"
    )
    after = {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    assert after.keys() == before.keys()
    for name, (kind, values) in before.items():
        plain = {key: value for key, value in values.items() if not key.startswith("_forward")}
        assert after[name][0] is kind or after[name][0].__mro__[1:] == kind.__mro__[1:]
        assert {key: after[name][1][key] for key in plain if key not in ("_modules", "_parameters")} == {
            key: plain[key] for key in plain if key not in ("_modules", "_parameters")
        }
    assert torch.equal(model.eval()(x), expected)


def test_quantizers_cannot_be_pinned() -> None:
    with pytest.raises(geta.ConfigError, match=r"no module or parameter '0\.input_quantizer'"):
        geta.prepare(
            mlp(), torch.randn(4, 4), geta.CompressionConfig(activation_bits=(4, 8), pin=("0.input_quantizer",))
        )


def test_dense_and_compressed_bytes_count_the_same_tensors(tmp_path: Path) -> None:
    """Nothing removed and nothing quantized: both are the bytes of the state."""
    model = mlp()
    state = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    report = geta.finish(geta.prepare(model, torch.randn(4, 4), geta.CompressionConfig(weight_bits=None))).report
    assert report.dense.bytes == report.bytes == state


def test_a_graph_module_makes_its_tensors_where_it_was_moved(tmp_path: Path) -> None:
    prepared = geta.prepare(Placed(), torch.randn(2, 6, 4), QUANTIZED)
    prepared.zero_([0, 1])
    compressed = geta.finish(prepared)
    assert not compressed.report.native
    compressed.save(tmp_path / "artifact")
    loaded = geta.load(tmp_path / "artifact")
    x = torch.randn(3, 6, 4)
    assert torch.equal(loaded(x), compressed.model(x))
    assert loaded.to("meta")(x.to("meta")).device.type == "meta"


def test_quantized_weights_have_one_zero(tmp_path: Path) -> None:
    """The module in memory and the one from the file agree in every bit, the signs of zeros among them."""
    prepared = geta.prepare(mlp(), torch.randn(4, 4), geta.CompressionConfig(weight_bits=(2, 2), initial_bits=2))
    compressed = geta.finish(prepared)
    compressed.save(tmp_path / "artifact")
    loaded = geta.load(tmp_path / "artifact").state_dict()
    own = compressed.model.state_dict()
    assert bool((own["3.weight"] == 0).any())
    for name, tensor in own.items():
        if tensor.is_floating_point():
            assert torch.equal(tensor.view(torch.int32), loaded[name].view(torch.int32)), name
