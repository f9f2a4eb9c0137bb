"""The audit recounts the files and is not content with what a report states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import geta_core as geta
from geta_core.artifact.audit import audit, audit_onnx, needed_bits
from geta_core.artifact.manifest import MANIFEST, TENSORS
from tests.geta_core.artifact.saved import copied, manifest_of, replace_tensors, rewrite, tensors_of
from tests.geta_core.compressing import MODES, NETS, compressed_net

Saved = Callable[[str, str], Path]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("net", NETS)
def test_what_is_saved_is_what_is_stated(saved: Saved, net: str, mode: str) -> None:
    folder = saved(net, mode)
    found = audit(folder)
    report = compressed_net(net, mode).report
    assert found.tensor_bytes == report.bytes == sum(t.numel() * t.element_size() for t in tensors_of(folder).values())
    assert found.total_bytes == sum((folder / name).stat().st_size for name in (TENSORS, MANIFEST))
    # Streams end at whole bytes, and counters of batch norms take 8 bytes each.
    assert found.tensor_bytes <= 1.05 * found.stated_bytes
    assert {tensor.name for tensor in found.tensors} == set(tensors_of(folder))


def change_layer(key: str, amount: float) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        layer = next(row for row in manifest["report"]["layers"] if row["counted"])
        layer[key] += amount

    return change


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "weight bits of a layer": change_layer("weight_bits", -1),
    "input bits of a layer": change_layer("input_bits", -1),
    "MACs of a layer": change_layer("macs", -1000),
    "average bits": lambda m: m["report"].update(weight_bits=m["report"]["weight_bits"] - 0.5),
    "relative BOPs": lambda m: m["report"].update(relative_bops=m["report"]["relative_bops"] / 2),
    "bytes": lambda m: m["report"].update(bytes=m["report"]["bytes"] - 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_report_that_is_not_so_is_found(saved: Saved, lie: str, tmp_path: Path) -> None:
    folder = copied(saved("vgg7", "WA"), tmp_path / "artifact")
    rewrite(folder, LIES[lie])
    geta.load(folder)  # the model itself is whole
    with pytest.raises(geta.ArtifactError, match=r"audit: .* stated"):
        audit(folder)


def test_more_bits_than_stated_are_found(saved: Saved, tmp_path: Path) -> None:
    """A weight in 16 bits whose report says what it was."""
    folder = copied(saved("vgg7", "W"), tmp_path / "artifact")
    name, entry = next((n, e) for n, e in manifest_of(folder)["tensors"].items() if "step" in e and len(e["bits"]) == 1)
    from geta_core.artifact.tensors import levels_of
    from geta_core.quantize.packing import pack

    tensors = tensors_of(folder)
    levels = levels_of(name, entry, tensors)
    tensors[name] = pack(levels, torch.tensor(16))
    replace_tensors(folder, safetensors.torch.save(tensors))
    rewrite(folder, lambda m: m["tensors"][name].update(bits=[16]))
    with pytest.raises(geta.ArtifactError, match=r"audit: .* stated"):
        audit(folder)


def test_needed_bits_against_counting() -> None:
    for bits in range(2, 17):
        top = 2 ** (bits - 1) - 1
        for low, high in ((-top, 0), (0, top), (-top, top)):
            levels = torch.tensor([[low, high], [0, 1]], dtype=torch.int16)
            assert needed_bits(levels, torch.ones(())).tolist() == [bits]
            assert needed_bits(levels, torch.ones(2, 1)).tolist() == [bits, 2]


@pytest.mark.needs("onnx", "onnxscript")
def test_an_onnx_file_is_recounted(saved: Saved, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    compressed, folder, path = compressed_net("vgg7", "WA"), saved("vgg7", "WA"), tmp_path / "model.onnx"
    compressed.export_onnx(path)
    rows = audit_onnx(path, folder)
    assert {row.name for row in rows} == set(compressed.weights)
    model = onnx.load(path)
    for change, match in ((_wider, "stated"), (_other_step, "not one of the artifact's"), (_as_float, "whole numbers")):
        altered = copy.deepcopy(model)
        change(altered.graph, numpy_helper)
        onnx.save(altered, tmp_path / "altered.onnx")
        with pytest.raises(geta.ArtifactError, match=match):
            audit_onnx(tmp_path / "altered.onnx", folder)


def _wider(graph: Any, helper: Any) -> None:
    tensor = next(t for t in graph.initializer if t.name.endswith(".levels"))
    values = np.asarray(helper.to_array(tensor)).astype(np.int16)
    values.flat[0] = 300
    tensor.CopyFrom(helper.from_array(values, tensor.name))


def _other_step(graph: Any, helper: Any) -> None:
    node = next(n for n in graph.node if n.op_type == "QuantizeLinear")
    tensor = next(t for t in graph.initializer if t.name == node.input[1])
    tensor.CopyFrom(helper.from_array(np.asarray(helper.to_array(tensor)) * np.float32(2), tensor.name))


def _as_float(graph: Any, helper: Any) -> None:
    tensor = next(t for t in graph.initializer if t.name.endswith(".levels"))
    tensor.name = tensor.name.removesuffix(".levels")
