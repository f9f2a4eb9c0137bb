"""Write a compressed model: integer weights, float rest, and a manifest with graph, bits, checksums and report."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from geta_core.artifact.example import example_spec
from geta_core.artifact.graph_json import encode
from geta_core.artifact.manifest import FORMAT, MANIFEST, TENSORS, dumps, number
from geta_core.artifact.tensors import held_tensors, stored, whole_numbers
from geta_core.errors import ArtifactError, GetaError
from geta_core.quantize import Quantizer
from geta_core.quantize.attach import INPUT_QUANTIZER
from geta_core.slim.graph_module import as_switchable

if TYPE_CHECKING:
    from geta_core.finishing import Compressed
    from geta_core.report import Report


def save(compressed: Compressed, directory: str | os.PathLike[str]) -> None:
    """Write the artifact; the directory appears whole or not at all, and replaces an older artifact.

    Raises:
        ArtifactError: if the directory cannot be written, holds something else, or the model cannot be described.
    """
    target = Path(os.path.realpath(directory))
    try:
        _check_replaceable(target)
        tensors, manifest = _contents(compressed)
        with _staging(target) as folder:
            _write(folder / TENSORS, tensors)
            _write(folder / MANIFEST, dumps(manifest))
            _swap(folder, target)
    except OSError as error:
        raise ArtifactError(f"save: cannot write {target}: {error.strerror or error}") from error


def _check_replaceable(target: Path) -> None:
    """Only an empty directory, or one that holds an artifact and nothing else, is ever replaced."""
    names = {path.name for path in target.iterdir()} if target.exists() else set()
    if names and names != {TENSORS, MANIFEST}:
        raise ArtifactError(f"save: {target} holds something else than an artifact; choose another directory")


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A new directory beside ``target``; afterwards it, and parents that were made for it, are gone unless used."""
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(staging: Path, target: Path) -> None:
    _sync(staging)
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _contents(compressed: Compressed) -> tuple[bytes, dict[str, Any]]:
    """The two files."""
    # torch.export takes a tensor that stands in two places of the example for one input.
    parameters = dict(compressed.model.named_parameters(remove_duplicate=False))
    for name in compressed.weights.keys() & parameters.keys():
        whole_numbers(name, parameters[name].detach(), compressed.weights[name].step.to(parameters[name].device))
    try:
        module = as_switchable(compressed.model, compressed.inputs.map(torch.clone))
    except GetaError as error:
        raise ArtifactError(f"save: {error}") from error
    tensors: dict[str, Tensor] = {}
    table: dict[str, dict[str, Any]] = {}
    for held in held_tensors(compressed.model, module):
        weight = next((compressed.weights[name] for name in held.names if name in compressed.weights), None)
        parts, entry = stored(held, weight)
        tensors |= parts
        table[held.names[0]] = entry
    data = safetensors.torch.save(tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return data, {
        "format": FORMAT,
        "versions": {"torch": str(torch.__version__)},
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "tensors_bytes": len(data),
        "tensors": table,
        "kept": [{"name": n, "dim": d, "indices": i.tolist()} for (n, d), i in compressed.keep.items()],
        "native": compressed.report.native,
        "inputs": _inputs(compressed.model),
        "example": example_spec(compressed.inputs),
        "changes": [vars(change) for change in compressed.changes],
        "report": {**_numbers(compressed.report), "bytes": size},
        "graph": encode(module),
    }


def _inputs(model: nn.Module) -> list[dict[str, Any]]:
    """The layers whose inputs are quantized."""
    found = []
    for name, module in model.named_modules():
        quantizer = getattr(module, INPUT_QUANTIZER, None)
        if isinstance(quantizer, Quantizer):
            found.append({"module": name, "signed": quantizer.signed, "exponent": quantizer.t is not None})
    return found


def _numbers(report: Report) -> Mapping[str, Any]:
    return {
        "parameters": report.parameters,
        "dense_parameters": report.dense_parameters,
        "macs": report.macs,
        "dense_macs": report.dense_macs,
        "relative_bops": report.relative_bops,
        "relative_sparse_bops": report.relative_sparse_bops,
        "group_sparsity": report.group_sparsity,
        "weight_bits": report.weight_bits,
        "activation_bits": report.activation_bits,
        "max_error64": number(report.max_error64),
        "max_error32": number(report.max_error32),
        "flipped_share": number(report.flipped_share),
        "layers": [dict(vars(layer)) for layer in report.layers],
    }
