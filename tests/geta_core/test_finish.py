"""Finishing: bits as they are or as the schedule fixed them, grids that are used, and a prepared model that stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import geta_core as geta
from geta_core.quantize import Quantizer
from tests.geta_core.compressing import MODES, NETS, batch, build, compressed_net, prepare, prepared_net, some_groups

CASES = [(net, mode) for net in NETS for mode in MODES if mode != "W"]


def original(site: geta.QuantSite) -> Tensor:
    assert site.parameter is not None
    return site.parameter.detach()


def picture(prepared: geta.Prepared) -> list[object]:
    """Everything of a prepared model that finishing could change, tensors by identity."""
    model = prepared.model
    held = (*model.named_parameters(), *model.named_buffers())
    modules = [(name, id(module), type(module), module.training) for name, module in model.named_modules()]
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    return [modules, hooks, [(name, id(value)) for name, value in held]]


@pytest.mark.parametrize(("net", "mode"), CASES)
def test_weights_lie_on_their_grids(net: str, mode: str) -> None:
    compressed, prepared = compressed_net(net, mode), prepared_net(net, mode)
    assert not any(parametrize.is_parametrized(module) for module in compressed.model.modules())
    weights = dict(compressed.model.named_parameters())
    sites = [site for site in prepared.sites if site.kind == "weight"]
    assert set(compressed.weights) == {site.name for site in sites}
    for name, quantized in compressed.weights.items():
        weight, step, bits = weights[name].detach(), quantized.step, quantized.bits
        level = (weight / step).round()
        assert torch.equal(level * step, weight), name
        # Channels go along the axis in which the step varies; per tensor there is one grid.
        axis = next((dim for dim, size in enumerate(step.shape) if size > 1), None)
        grids = [level] if axis is None else level.unbind(axis)
        for grid, width in zip(grids, bits.flatten().tolist(), strict=True):
            assert int(grid.abs().max()) <= 2 ** (width - 1) - 1, name
            assert grid.unique().numel() <= 2**width - 1, name
    for site in sites:
        assert int(compressed.weights[site.name].bits.max()) <= float(site.quantizer.bits().max())


@pytest.mark.parametrize(("net", "mode"), CASES)
def test_kept_weights_are_the_quantized_ones(net: str, mode: str) -> None:
    compressed, prepared = compressed_net(net, mode), prepared_net(net, mode)
    weights = dict(compressed.model.named_parameters())
    for site in prepared.sites:
        if site.kind == "weight":
            expected = site.quantizer(original(site)).detach()
            for (name, dim), index in compressed.keep.items():
                if name == site.name:
                    expected = expected.index_select(dim, index)
            assert torch.equal(weights[site.name], expected), site.name


@pytest.mark.parametrize("net", NETS)
def test_the_result_computes_what_the_zeroed_model_does(net: str) -> None:
    for mode in ("float", "W"):
        compressed, prepared = compressed_net(net, mode), prepared_net(net, mode)
        for size in (1, 2, 5):
            x = batch(net, size)
            with torch.no_grad():
                expected = copy.deepcopy(prepared.model).eval()(x)
                torch.testing.assert_close(compressed.model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_the_report_tells_what_was_done(net: str) -> None:
    compressed, prepared = compressed_net(net, "WA"), prepared_net(net, "WA")
    report, model = compressed.report, compressed.model
    assert report.native == (net != "fixed")
    assert bool(report.native_refusal) == (net == "fixed")
    assert isinstance(model, type(build(net))) == report.native
    assert (report.groups, report.removed) == (prepared.num_prunable, prepared.zero_groups())
    assert report.group_sparsity == report.removed / report.groups > 0.3
    assert report.max_error64 <= 1e-10
    assert report.inexact == 0
    assert report.flipped_share is not None
    assert report.flipped_share < 0.05
    quantizers = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    if report.native:
        assert report.parameters == sum(p.numel() for p in model.parameters() if id(p) not in quantizers)
    assert report.dense_parameters == sum(p.numel() for p in build(net).parameters())
    assert report.parameters < report.dense_parameters
    assert report.unquantized == {}
    assert not model.training


# ---------------------------------------------------------------- without QASSO


def test_bits_are_fixed_as_they_are() -> None:
    prepared = prepare("vgg7", "WA")
    wanted = {}
    for position, site in enumerate(prepared.sites):
        bits = (2.6, 4.4, 5.5, 7.49, 16.0)[position % 5]
        site.quantizer.set_bits_(bits)
        wanted[site.name] = round(bits)
    compressed = geta.finish(prepared)
    assert {name: int(weight.bits) for name, weight in compressed.weights.items()} == {
        name: bits for name, bits in wanted.items() if name in compressed.weights
    }
    for site in prepared.sites:
        if site.kind == "input":
            quantizer = compressed.model.get_submodule(f"{site.module_name}.input_quantizer")
            assert float(quantizer.bits()) == wanted[site.name]
    rows = [row for row in compressed.report.layers if row.counted]
    assert [row.weight_bits for row in rows] == [wanted[row.name] for row in rows]
    assert compressed.report.relative_bops == pytest.approx(
        sum(row.macs * row.weight_bits * row.input_bits for row in rows) / (compressed.report.dense_macs * 1024)
    )


def test_bits_are_never_below_two() -> None:
    prepared = prepare("vgg7", "W")
    for site in prepared.sites:
        site.quantizer.set_bits_(1.2)
    assert {int(weight.bits) for weight in geta.finish(prepared).weights.values()} == {2}


def test_straight_after_prepare_nothing_is_lost() -> None:
    model, x = build("mobilenet"), batch("mobilenet", 4)
    expected = model(x)
    compressed = geta.finish(geta.prepare(model, batch("mobilenet"), geta.CompressionConfig()))
    assert compressed.report.removed == 0
    assert compressed.report.relative_bops == 0.5
    torch.testing.assert_close(compressed.model(x), expected, rtol=0, atol=2e-3)


# ---------------------------------------------------------------- with a schedule

SCHEDULE = geta.Schedule(warmup=2, projection=2, joint=3, cooldown=2, projection_periods=2, pruning_periods=3)


def trained(steps: int) -> tuple[geta.Prepared, geta.QASSO]:
    config = geta.CompressionConfig(sparsity=0.3, weight_bits=(4, 6), activation_bits=(4, 7), initial_bits=8)
    prepared = geta.prepare(build("vgg7"), batch("vgg7"), config)
    optimizer = geta.QASSO(prepared, torch.optim.SGD, schedule=SCHEDULE, lr=0.01, lr_quant=1e-4)
    x = batch("vgg7", 4)
    for _ in range(steps):
        optimizer.zero_grad()
        prepared.model.train()(x).square().mean().backward()
        optimizer.step()
    return prepared, optimizer


@pytest.mark.parametrize("steps", [0, 5, 8])
def test_an_unfinished_schedule_is_refused(steps: int) -> None:
    prepared, optimizer = trained(steps)
    assert not optimizer.finished
    before = picture(prepared)
    with pytest.raises(
        geta.ScheduleError, match=r"schedule is not complete.*train to the schedule's end, or pass early"
    ):
        geta.finish(prepared)
    assert picture(prepared) == before
    early = geta.finish(prepared, early=True)
    assert early.report.removed == prepared.zero_groups()
    assert early.report.max_error64 <= 1e-10


def test_a_finished_schedule_gives_its_own_bits() -> None:
    prepared, optimizer = trained(9)
    assert optimizer.finished
    report = geta.finish(prepared).report
    assert report.removed == int(0.3 * prepared.num_prunable) == prepared.zero_groups()
    fixed = optimizer.fixed_bits()
    compressed = geta.finish(prepared)
    for site in prepared.sites:
        low, high = (4, 6) if site.kind == "weight" else (4, 7)
        assert low <= int(fixed[site.name]) <= high
        if site.kind == "weight":
            assert int(compressed.weights[site.name].bits) == int(fixed[site.name])
    assert report.relative_bops == pytest.approx(prepared.status()["relative_bops"], rel=1e-6)
    assert report.bytes == prepared.measure().bytes


# ---------------------------------------------------------------- prepared stays


@pytest.mark.parametrize(("net", "mode"), [("resnet", "WA"), ("encoder", "WA"), ("fixed", "W per channel")])
def test_the_prepared_model_stays_and_trains_on(net: str, mode: str) -> None:
    prepared = prepare(net, mode)
    prepared.model.train()
    before, values = picture(prepared), copy.deepcopy(prepared.model.state_dict())
    status, x = prepared.status(), batch(net, 3)
    first = geta.finish(prepared)
    assert picture(prepared) == before
    assert all(torch.equal(value, values[key]) for key, value in prepared.model.state_dict().items())
    assert prepared.status() == status
    # Nothing is shared: training one leaves the other alone. Both dictionaries live while addresses are compared: each
    # holds tensors made for it alone (extra state), whose memory is given out again once they are gone.
    own_state, given = prepared.model.state_dict(), first.model.state_dict()
    shared = {value.data_ptr() for value in own_state.values() if value.numel()}
    assert not shared & {value.data_ptr() for value in given.values() if value.numel()}
    stored = copy.deepcopy(first.model.state_dict())
    own = {id(parameter) for site in prepared.sites for parameter in site.quantizer.parameters()}
    optimizer = torch.optim.SGD([p for p in prepared.model.parameters() if id(p) not in own], lr=0.1)
    prepared.model(x).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, stored[key]) for key, value in first.model.state_dict().items())
    assert not all(torch.equal(value, values[key]) for key, value in prepared.model.state_dict().items())
    prepared.zero_(some_groups(prepared))
    again = geta.finish(prepared)
    assert again.report.removed == first.report.removed
    assert prepared.model.training


def test_a_finished_model_trains_further() -> None:
    model = copy.deepcopy(compressed_net("resnet", "WA").model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, losses = batch("resnet", 8), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------- Hugging Face


def hugging_face(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    torch.manual_seed(0)
    index = torch.randint(0, 64, (2, 10))
    if name == "gpt2":
        small = transformers.GPT2Config(
            vocab_size=64,
            n_positions=16,
            n_embd=32,
            n_layer=2,
            n_head=4,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        return transformers.GPT2LMHeadModel(small), {"input_ids": index}
    small = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        num_labels=3,
    )
    inputs = {"input_ids": index, "attention_mask": torch.ones_like(index), "token_type_ids": torch.zeros_like(index)}
    inputs["position_ids"] = torch.arange(10).expand(2, -1).contiguous()
    return transformers.BertForSequenceClassification(small), inputs


def pruned(name: str) -> tuple[geta.Prepared, dict[str, Tensor]]:
    """Prepared with some groups at zero: of BERT any, of GPT-2 those inside its two MLPs."""
    model, inputs = hugging_face(name)
    config = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8), initial_bits=8)
    prepared = geta.prepare(model, inputs, config)
    inner = {f"transformer.h.{block}.mlp.c_fc.bias" for block in range(2)}
    groups = prepared.graph.groups[: prepared.num_prunable]
    chosen = [group.id for group in groups if inner & {member.name for member in group.members}][::3]
    prepared.zero_(chosen if name == "gpt2" else some_groups(prepared))
    return prepared, inputs


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_hugging_face_models_save_and_tie_as_before(name: str, tmp_path: Path) -> None:
    prepared, inputs = pruned(name)
    assert prepared.unquantized == {}
    compressed = geta.finish(prepared)
    model: Any = compressed.model
    assert type(model) is type(hugging_face(name)[0])
    assert compressed.report.removed == prepared.zero_groups() > 40
    with torch.no_grad():
        expected = model(**inputs).logits
        zeroed = copy.deepcopy(prepared.model).eval()(**inputs).logits
    torch.testing.assert_close(expected, zeroed, rtol=0, atol=1e-4)
    model.save_pretrained(tmp_path / "hub")
    model.tie_weights()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
    compressed.save(tmp_path / "artifact")
    graph, filled = geta.load(tmp_path / "artifact"), geta.load(tmp_path / "artifact", hugging_face(name)[0])
    with torch.no_grad():
        assert torch.equal(graph(**inputs)["logits"], expected)
        assert torch.equal(filled(**inputs).logits, expected)
    import safetensors.torch

    saved = safetensors.torch.load_file(tmp_path / "hub" / "model.safetensors")
    assert not any("parametrizations" in key for key in saved)
    assert all(torch.equal(saved[key], model.state_dict()[key]) for key in saved)


@pytest.mark.needs("transformers")
def test_the_tied_embedding_of_gpt2_is_one_quantized_tensor(tmp_path: Path) -> None:
    prepared, _ = pruned("gpt2")
    ties = [site for site in prepared.sites if len(site.owners) > 1]
    assert [site.name for site in ties] == ["lm_head.weight"]
    compressed = geta.finish(prepared)
    model: Any = compressed.model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.unique().numel() <= 2**8 - 1
    compressed.save(tmp_path)
    import safetensors.torch

    file = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert file["transformer.wte.weight"].dtype == torch.uint8
    assert sum(value.numel() * value.element_size() for value in file.values()) == compressed.report.bytes
    graph = geta.load(tmp_path)
    assert graph.get_parameter("lm_head.weight") is graph.get_parameter("transformer.wte.weight")


@pytest.mark.needs("transformers")
def test_the_conv1d_of_gpt2_is_quantized_per_output_channel() -> None:
    model, inputs = hugging_face("gpt2")
    prepared = geta.prepare(model, inputs, geta.CompressionConfig(per_channel=True))
    steps = {site.name: tuple(site.quantizer.d.shape) for site in prepared.sites}
    assert steps["transformer.h.0.attn.c_attn.weight"] == (1, 96)
    assert steps["transformer.h.1.mlp.c_fc.weight"] == (1, 128)
    rows = {row.name: row.macs for row in prepared.measure().layers if row.counted}
    assert rows["transformer.h.0.attn.c_attn.weight"] == 10 * 32 * 96
