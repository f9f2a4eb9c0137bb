"""Write a compressed model: integer weights, float rest, and a manifest with graph, bits, checksums and report."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, fx, nn

from geta_core.artifact.graph_json import encode
from geta_core.artifact.tensors import integer_type, named_tensors
from geta_core.errors import ArtifactError
from geta_core.quantize import Quantizer
from geta_core.quantize.attach import INPUT_QUANTIZER
from geta_core.slim.graph_module import as_switchable

if TYPE_CHECKING:
    from geta_core.finishing import Compressed, QuantizedWeight

FORMAT = 1
TENSORS, MANIFEST = "model.safetensors", "manifest.json"


def save(compressed: Compressed, directory: str | os.PathLike[str]) -> None:
    """Write the artifact; the directory appears whole or not at all, and replaces an older artifact.

    Raises:
        ArtifactError: if the directory cannot be written, holds something else, or the model cannot be described.
    """
    target = Path(directory).absolute()
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise ArtifactError(f"save: {target} exists and is not an artifact; choose another directory")
    module = as_switchable(compressed.model, compressed.inputs)
    tensors, table = _tensors(compressed)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        staging.mkdir(parents=True)
        data = safetensors.torch.save(tensors)
        _write(staging / TENSORS, data)
        manifest = _manifest(compressed, module, table, data)
        _write(staging / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())
        _swap(staging, target)
    except OSError as error:
        raise ArtifactError(f"save: cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(staging: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tensors(compressed: Compressed) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Stored tensors by key, and for each tensor of the model how it is stored."""
    stored: dict[str, Tensor] = {}
    table: dict[str, dict[str, Any]] = {}
    aliases = _aliases(compressed.model)
    for name, tensor in named_tensors(compressed.model).items():
        value = tensor.detach().cpu().contiguous()
        entry: dict[str, Any] = {"parameter": isinstance(tensor, nn.Parameter), "names": aliases[name]}
        weight = compressed.weights.get(name)
        if weight is None:
            stored[name] = value.clone()
        else:
            stored[name] = _levels(name, value, weight)
            stored[f"{name}.step"] = weight.step.cpu().contiguous()
            entry |= {"bits": weight.bits.flatten().tolist(), "step": f"{name}.step"}
        table[name] = entry
    return stored, table


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Every name of each tensor: tied tensors have several."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in held:
        names.setdefault(first.setdefault(id(tensor), name), []).append(name)
    return names


def _levels(name: str, value: Tensor, weight: QuantizedWeight) -> Tensor:
    """Whole numbers that times the step give the weight bit for bit."""
    step = weight.step.cpu()
    level = (value / step).round()
    if not torch.equal(level * step, value):
        raise ArtifactError(f"save: {name} does not lie on its grid; was the model trained after finish?")
    return level.to(integer_type(int(weight.bits.max())))


def _inputs(model: nn.Module) -> list[dict[str, Any]]:
    """The layers whose inputs are quantized."""
    found = []
    for name, module in model.named_modules():
        quantizer = getattr(module, INPUT_QUANTIZER, None)
        if isinstance(quantizer, Quantizer):
            found.append({"module": name, "signed": quantizer.signed, "exponent": quantizer.t is not None})
    return found


def _manifest(
    compressed: Compressed, module: fx.GraphModule, table: dict[str, dict[str, Any]], data: bytes
) -> dict[str, Any]:
    report = compressed.report
    return {
        "format": FORMAT,
        "versions": {"torch": str(torch.__version__)},
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "tensors_bytes": len(data),
        "tensors": table,
        "kept": [{"name": n, "dim": d, "indices": i.tolist()} for (n, d), i in compressed.keep.items()],
        "native": report.native,
        "inputs": _inputs(compressed.model),
        "changes": [vars(change) for change in compressed.changes],
        "report": {
            "parameters": report.parameters,
            "dense_parameters": report.dense_parameters,
            "macs": report.macs,
            "dense_macs": report.dense_macs,
            "relative_bops": report.relative_bops,
            "group_sparsity": report.group_sparsity,
            "weight_bits": report.weight_bits,
            "activation_bits": report.activation_bits,
            "bytes": report.bytes,
            "max_error64": report.max_error64,
            "max_error32": report.max_error32,
            "flipped_share": report.flipped_share,
            "layers": [vars(layer) for layer in copy.deepcopy(report.layers)],
        },
        "graph": encode(module),
    }
