"""What is loaded is what was saved, bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import geta_core as geta
from geta_core.artifact.manifest import MANIFEST, TENSORS
from geta_core.quantize.packing import unpack
from tests.geta_core.artifact.saved import manifest_of, tensors_of
from tests.geta_core.compressing import MODES, NETS, batch, build, compressed_net, prepared_net

Saved = Callable[[str, str], Path]
CASES = [(net, mode) for net in NETS for mode in MODES]
NATIVE = [case for case in CASES if case[0] != "fixed"]


def names_and_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def assert_same_tensors(found: nn.Module, expected: nn.Module) -> None:
    got, want = dict(names_and_tensors(found)), dict(names_and_tensors(expected))
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert isinstance(got[name], nn.Parameter) == isinstance(tensor, nn.Parameter), name
        assert torch.equal(got[name], tensor), name


def assert_same_results(found: nn.Module, expected: nn.Module, net: str) -> None:
    with torch.no_grad():
        for size in (1, 2, 5):
            x = batch(net, size)
            assert torch.equal(found(x), expected(x)), size


@pytest.mark.parametrize(("net", "mode"), CASES)
def test_the_graph_is_the_model(saved: Saved, net: str, mode: str) -> None:
    model = compressed_net(net, mode).model
    loaded = geta.load(saved(net, mode))
    assert not loaded.training
    assert isinstance(loaded, fx.GraphModule)
    assert_same_tensors(loaded, model)
    assert_same_results(loaded, model, net)
    # What kind of grid an input has is part of the module there and of the graph here.
    own = {key for key in model.state_dict() if not key.endswith("_extra_state")}
    assert set(loaded.state_dict()) == own


@pytest.mark.parametrize(("net", "mode"), NATIVE)
def test_a_dense_instance_becomes_the_model(saved: Saved, net: str, mode: str) -> None:
    model = compressed_net(net, mode).model
    dense = build(net)
    loaded = geta.load(saved(net, mode), dense)
    assert loaded is dense
    assert not loaded.training
    assert type(loaded) is type(model)
    assert_same_tensors(loaded, model)
    want = model.state_dict()
    assert loaded.state_dict().keys() == want.keys()
    assert all(torch.equal(value, want[key]) for key, value in loaded.state_dict().items())
    assert_same_results(loaded, model, net)


@pytest.mark.parametrize(("net", "mode"), CASES)
def test_weights_are_stored_as_whole_numbers(saved: Saved, net: str, mode: str) -> None:
    compressed = compressed_net(net, mode)
    table, file = manifest_of(saved(net, mode))["tensors"], tensors_of(saved(net, mode))
    held = dict(names_and_tensors(compressed.model))
    quantized = {name for name, entry in table.items() if "step" in entry}
    assert quantized == set(compressed.weights)
    assert bool(quantized) == (mode != "float")
    for name in quantized:
        entry, data, step = table[name], file[name], file[table[name]["step"]]
        bits = torch.tensor(entry["bits"])
        each = held[name].numel() // len(entry["bits"])
        streams = {width: each * entry["bits"].count(width) for width in entry["bits"]}
        assert data.dtype == torch.uint8
        assert data.numel() == sum(math.ceil(count * width / 8) for width, count in streams.items()), name
        level = unpack(data, tuple(entry["shape"]), bits.view(step.shape))
        assert torch.equal(level.to(step.dtype) * step, held[name]), name
        assert step.numel() == len(entry["bits"])
        top = (2 ** (bits - 1) - 1).view(step.shape)
        assert bool((level.long().abs() <= top).all()), name
        assert torch.equal(compressed.weights[name].bits.flatten(), bits.short()), name
    for name in table.keys() - quantized:
        assert file[name].dtype == held[name].dtype
        assert torch.equal(file[name], held[name])
    assert file.keys() == table.keys() | {f"{name}.step" for name in quantized}
    mixed = [name for name in quantized if len(set(table[name]["bits"])) > 1]
    assert bool(mixed) == (mode == "W per channel")


@pytest.mark.parametrize(("net", "mode"), CASES)
def test_reported_bytes_are_those_of_the_file(saved: Saved, net: str, mode: str) -> None:
    folder, compressed = saved(net, mode), compressed_net(net, mode)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(folder).values())
    manifest = manifest_of(folder)
    assert compressed.report.bytes == size
    assert prepared_net(net, mode).measure().bytes == size
    assert geta.measure(compressed).bytes == size
    assert manifest["report"]["bytes"] == size
    assert manifest["tensors_bytes"] == (folder / TENSORS).stat().st_size
    if mode == "float":
        held = {id(tensor): tensor for _, tensor in names_and_tensors(compressed.model)}.values()
        assert size == sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_the_manifest_repeats_the_report(saved: Saved) -> None:
    report = compressed_net("resnet", "WA").report
    written = manifest_of(saved("resnet", "WA"))["report"]
    for key in ("parameters", "dense_parameters", "macs", "dense_macs", "weight_bits", "activation_bits"):
        assert written[key] == getattr(report, key)
    assert written["layers"] == [dict(vars(layer)) for layer in report.layers]
    assert written["group_sparsity"] == report.group_sparsity == 22 / 56
    assert sum(1 for _ in saved("resnet", "WA").iterdir()) == 2
    assert (saved("resnet", "WA") / MANIFEST).read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("net", ["resnet", "mobilenet"])
def test_the_graph_trains_like_the_model(saved: Saved, net: str) -> None:
    # 64 examples: the larger inputs are quantized by the blocked code.
    x = batch(net, 64)
    graph, module = geta.load(saved(net, "WA")), copy.deepcopy(compressed_net(net, "WA").model)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for model in (graph, module):
        model.train()
        model(x).square().sum().backward()
    assert_same_tensors(graph, module)
    changed = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
    assert changed == list(before)
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name, parameter in graph.named_parameters():
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, gradients[name]), name
    assert any(name.endswith("input_quantizer.d") for name in gradients)
    for model in (graph, module):
        model.eval()
    assert torch.equal(graph(x), module(x))


def test_the_graph_switches_between_its_modes(saved: Saved) -> None:
    graph, x = geta.load(saved("fixed", "W")), batch("fixed", 3)
    still = graph(x)
    graph.train()
    assert not torch.equal(graph(x), graph(x))
    graph.eval()
    assert torch.equal(graph(x), graph(x))
    # The training steps above moved the running statistics.
    assert not torch.equal(graph(x), still)
    assert int(graph.get_buffer("norm.num_batches_tracked")) == 2


def test_a_graph_fills_no_model(saved: Saved) -> None:
    dense = build("fixed")
    with pytest.raises(geta.ArtifactError, match="this artifact is a graph"):
        geta.load(saved("fixed", "W"), dense)
    assert dense.state_dict().keys() == build("fixed").state_dict().keys()
