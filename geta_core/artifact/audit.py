"""Recount what an artifact, or an ONNX file made of it, really holds, and compare with what is stated."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geta_core.artifact.manifest import MANIFEST, TENSORS, field
from geta_core.artifact.reader import Opened, open_artifact
from geta_core.artifact.tensors import levels_of
from geta_core.errors import ArtifactError
from geta_core.quantize import math as grid
from geta_core.quantize.attach import INPUT_QUANTIZER

SLACK = 1.05
"""Largest size of the stored tensors over what their stated bits ask for."""
FLOAT_BITS = 32


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of an artifact."""

    name: str
    elements: int
    bits: float
    """Stated bits per element, averaged; 32 where it is not quantized."""
    used_bits: float
    """Bits that its levels need, averaged over its channels; the stored type's where it is not quantized."""
    bytes: int
    """In the file."""


@dataclass(frozen=True)
class Audit:
    """What an artifact holds."""

    tensors: tuple[StoredTensor, ...]
    header_bytes: int
    """Names, types and places of the tensors (safetensors)."""
    graph_bytes: int
    """Operations of the model in the manifest."""
    manifest_bytes: int
    """The rest of the manifest."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def stated_bytes(self) -> float:
        """Sum of elements x stated bits / 8."""
        return sum(tensor.elements * tensor.bits / 8 for tensor in self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of both files."""
        return self.tensor_bytes + self.header_bytes + self.graph_bytes + self.manifest_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        sums = {name: getattr(self, name) for name in ("tensor_bytes", "stated_bytes", "total_bytes")}
        return {**asdict(self), **sums}


def audit(directory: str | os.PathLike[str]) -> Audit:
    """Recount bits and sizes from the files of an artifact.

    Raises:
        ArtifactError: as ``load``, and for the first number that the files do not bear out.
    """
    opened = open_artifact(directory)
    table = field(opened.manifest, "tensors", dict)
    tensors = tuple(row for name, entry in table.items() for row in _rows(name, entry, opened.file))
    data, manifest = ((opened.folder / name).stat().st_size for name in (TENSORS, MANIFEST))
    graph = len(json.dumps(opened.manifest["graph"], indent=1))
    found = Audit(tensors, data - sum(row.bytes for row in tensors), graph, manifest - graph)
    for fault in _faults(opened, found):
        raise ArtifactError(f"audit: {opened.folder}: {fault}")
    return found


def _rows(name: str, entry: Mapping[str, Any], file: Mapping[str, Tensor]) -> Iterator[StoredTensor]:
    data = file[name]
    size = data.numel() * data.element_size()
    if "step" not in entry:
        yield StoredTensor(name, data.numel(), FLOAT_BITS, 8 * data.element_size(), size)
        return
    step, bits = file[entry["step"]], torch.tensor(entry["bits"], dtype=torch.float64)
    used = needed_bits(levels_of(name, entry, file), step)
    yield StoredTensor(name, math.prod(entry["shape"]), float(bits.mean()), float(used.double().mean()), size)
    yield StoredTensor(
        entry["step"], step.numel(), FLOAT_BITS, 8 * step.element_size(), step.numel() * step.element_size()
    )


def needed_bits(levels: Tensor, step: Tensor) -> Tensor:
    """Bits that signed levels need, [channels]: ceil(log2(max|n| + 1)) + 1, at least 2."""
    axis = next((dim for dim, size in enumerate(step.shape) if size > 1), None)
    rows = levels.reshape(1, -1) if axis is None else levels.movedim(axis, 0).reshape(levels.shape[axis], -1)
    top = rows.to(torch.int64).abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows), dtype=torch.int64)
    return ((top + 1).double().log2().ceil() + 1).clamp(min=2).long()


def _faults(opened: Opened, found: Audit) -> Iterator[str]:
    """Everything that is stated and not so."""
    report, table = field(opened.manifest, "report", dict), opened.manifest["tensors"]
    if found.tensor_bytes != report["bytes"]:
        yield f"the tensors take {found.tensor_bytes} bytes, but {report['bytes']} are stated"
    if found.tensor_bytes > SLACK * found.stated_bytes:
        yield f"the tensors take {found.tensor_bytes} bytes, more than {SLACK} x {found.stated_bytes:.0f}"
    for name, entry in table.items():
        if "step" in entry:
            used = needed_bits(levels_of(name, entry, opened.file), opened.file[entry["step"]])
            if bool((used > torch.tensor(entry["bits"])).any()):
                yield f"{name} needs {used.tolist()} bits, but {entry['bits']} are stated"
    by_alias = {alias: entry for entry in table.values() for alias in entry["names"]}
    inputs = input_bits(opened)
    for layer in report["layers"]:
        entry = by_alias.get(layer["name"])
        if entry is None:
            continue
        bits = sum(entry["bits"]) / len(entry["bits"]) if "bits" in entry else FLOAT_BITS
        if abs(bits - layer["weight_bits"]) > 1e-6:
            yield f"{layer['name']} is stored with {bits:g} bits, but {layer['weight_bits']:g} are stated"
        own = inputs.get(layer["name"].rpartition(".")[0])
        if layer["input_bits"] != FLOAT_BITS and own is not None and own != layer["input_bits"]:
            yield f"the input of {layer['name']} has {own:g} bits, but {layer['input_bits']:g} are stated"
    yield from _averages(report)


def _averages(report: Mapping[str, Any]) -> Iterator[str]:
    counted = [layer for layer in report["layers"] if layer["counted"]]
    elements = sum(layer["weights"] for layer in counted)
    if elements:
        weight_bits = sum(layer["weights"] * layer["weight_bits"] for layer in counted) / elements
        if abs(weight_bits - report["weight_bits"]) > 1e-6:
            yield f"the weights have {weight_bits:g} bits on average, but {report['weight_bits']:g} are stated"
    dense = report["dense_macs"] * FLOAT_BITS**2
    relative = sum(row["macs"] * row["weight_bits"] * row["input_bits"] for row in counted) / dense if dense else 0.0
    if abs(relative - report["relative_bops"]) > 1e-9:
        yield f"the layers add up to {relative:.6g} of the dense BOPs, but {report['relative_bops']:.6g} is stated"


def input_bits(opened: Opened) -> dict[str, float]:
    """Bits of the quantized inputs by module, computed from the stored steps and ranges."""
    found = {}
    for entry in field(opened.manifest, "inputs", list):
        prefix = _quantizer(entry)
        d, q_m, t = (opened.file.get(f"{prefix}.{name}") for name in ("d", "q_m", "t"))
        if d is not None and q_m is not None:
            found[entry["module"]] = float(grid.bit_width(d, q_m, t, bool(entry["signed"])))
    return found


def audit_onnx(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> list[StoredTensor]:
    """Recount the bits of an ONNX file's weights and inputs against the artifact that it was made of.

    Returns:
        One row per weight that is stored as whole numbers.

    Raises:
        ArtifactError: for the first number that the file does not bear out.
    """
    import onnx
    from onnx import numpy_helper

    opened = open_artifact(directory)
    graph = onnx.load(os.fspath(path)).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    rows = []
    for name, weight in opened.weights.items():
        tensor = held.get(f"{name}.levels")
        if tensor is None:
            continue
        values = np.asarray(numpy_helper.to_array(tensor)).astype(np.int64)
        # A common power of two belongs to the step.
        together = int(np.bitwise_or.reduce(np.abs(values), axis=None))
        top = int(np.abs(values).max(initial=0)) // max(together & -together, 1)
        used, stated = max(2, math.ceil(math.log2(top + 1)) + 1), int(weight.bits.max())
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        width = int(kind.lstrip("UINT"))
        size = len(tensor.raw_data)
        if used > stated or stated > width or size != -(-values.size * width // 8):
            raise ArtifactError(
                f"audit: {path}: {name} is {values.size} x {kind} in {size} bytes and needs {used} bits, but {stated} "
                "are stated"
            )
        rows.append(StoredTensor(name, values.size, float(weight.bits.double().mean()), used, size))
    seen = {row.name for row in rows}
    quantized = [entry["names"] for entry in opened.manifest["tensors"].values() if "step" in entry]
    absent = [names[0] for names in quantized if not seen & set(names)]
    if absent:
        raise ArtifactError(f"audit: {path}: {absent[0]} is not stored as whole numbers")
    _check_inputs(graph, opened, path)
    return rows


def _check_inputs(graph: Any, opened: Opened, path: object) -> None:
    """Compare the step of every quantized input with the artifact's."""
    from onnx import numpy_helper

    held = {tensor.name: tensor for tensor in graph.initializer}
    names = [_quantizer(entry) for entry in field(opened.manifest, "inputs", list)]
    stored = {float(opened.file[f"{name}.d"]) for name in names if f"{name}.d" in opened.file}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and float(numpy_helper.to_array(held[node.input[1]])) not in stored:
            raise ArtifactError(f"audit: {path}: the step of {node.input[1]} is not one of the artifact's")


def _quantizer(entry: Mapping[str, Any]) -> str:
    return f"{entry['module']}.{INPUT_QUANTIZER}".lstrip(".")
