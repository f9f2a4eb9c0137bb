"""Defects 21 to 26 of the released code that can be checked on whole models (the others: qasso/ and quantize/)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import geta_core as geta
from orchestration.models import build_small, example_inputs


def _prepared(name: str, **config: object) -> geta.Prepared:
    torch.manual_seed(0)
    inputs = example_inputs(name, batch=2, small=True)
    return geta.prepare(build_small(name), inputs, geta.CompressionConfig(**config))  # type: ignore[arg-type]


def test_defect_21_a_tensor_in_several_groups_is_updated_once() -> None:
    prepared = _prepared("encoder", sparsity=0.5, activation_bits=(4, 8))
    assert len({(slot.name, slot.dim) for slot in prepared.slots}) == len(prepared.slots)
    schedule = geta.Schedule(warmup=1, projection=5, joint=5, cooldown=1, projection_periods=2, pruning_periods=2)
    optimizer = geta.QASSO(prepared, torch.optim.AdamW, schedule=schedule, lr=1e-3)
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(owned) == len(set(owned)) == len(list(prepared.model.parameters()))


def test_defect_22_the_width_behind_a_gelu_is_cut_with_input_quantizers() -> None:
    prepared = _prepared("bert_layers", sparsity=0.5, activation_bits=(4, 8))
    groups = [group for group in prepared.graph.groups if group.pinned is None]
    # Rows of one weight and columns of another, one of each: the hidden width of a feed-forward block.
    hidden = [g for g in groups if sorted(len(m.indices) for m in g.members if m.role == "CONSUME") == [1]]
    consumed = next(m for m in hidden[0].members if m.role == "CONSUME")
    same = [g for g in hidden if any((m.name, m.dim) == (consumed.name, consumed.dim) for m in g.members)]
    prepared.zero_(same[::2])
    parameters = dict(geta.finish(prepared).model.named_parameters())
    assert parameters[consumed.name].shape[consumed.dim] == len(same) - len(same[::2]) == len(same) // 2


class Mine(nn.Module):
    """Attention whose class and attribute names say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Linear(16, 48)
        self.omega = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.alpha(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.omega(nn.functional.scaled_dot_product_attention(a, b, c).transpose(1, 2).flatten(2))


def test_defect_23_attention_is_found_without_any_name() -> None:
    prepared = geta.prepare(Mine(), torch.randn(2, 5, 16), geta.CompressionConfig(weight_bits=None))
    heads = [group for group in prepared.graph.groups if group.pinned is None]
    assert len(heads) == 4
    assert all(sum(len(m.indices) for m in group.members if m.name == "alpha.weight") == 12 for group in heads)


class Chunks(nn.Module):
    """Three chunks of one layer, a grouped and a 1-D convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 24, 3, padding=1)
        self.grouped = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.first(x).relu().chunk(3, 1)
        return self.last(self.grouped(a * b + c).relu().mean(-1))


def test_defect_24_three_chunks_and_grouped_convolutions_of_any_rank() -> None:
    torch.manual_seed(0)
    prepared = geta.prepare(Chunks(), torch.randn(2, 4, 9), geta.CompressionConfig(weight_bits=None))
    assert prepared.num_prunable == 8, "4 in front of the grouped convolution, 4 behind it"
    prepared.zero_(range(0, 8, 2))
    report = geta.finish(prepared).report
    assert report.max_error64 <= 1e-10
    assert report.parameters < report.dense_parameters


def test_defect_25_the_dense_account_is_not_mutated() -> None:
    prepared = _prepared("resnet20", activation_bits=(4, 8))
    dense = geta.measure(build_small("resnet20"), example_inputs("resnet20", batch=2, small=True))
    prepared.zero_(range(0, prepared.num_prunable, 3))
    first, second = geta.finish(prepared).report, geta.finish(prepared).report
    assert first.dense_macs == second.dense_macs == dense.macs
    assert first.dense.weight_bits == first.dense.activation_bits == 32
    assert first.relative_bops == first.measurement.bops / (dense.macs * 32 * 32)
    # A layer without an input quantizer counts 32 bits, not those of the layer before it.
    weights_only = _prepared("resnet20").measure()
    assert {layer.input_bits for layer in weights_only.layers} == {32}


def test_defect_26_the_file_is_small_and_holds_no_pickle(tmp_path: Path) -> None:
    prepared = _prepared("vgg7", weight_bits=(4, 8))
    for site in prepared.sites:
        site.quantizer.set_bits_(4.0)
    compressed = geta.finish(prepared)
    compressed.save(tmp_path / "artifact")
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == ["manifest.json", "model.safetensors"]
    assert (tmp_path / "artifact" / "model.safetensors").stat().st_size < compressed.report.dense.bytes / 2
    json.loads((tmp_path / "artifact" / "manifest.json").read_text())
