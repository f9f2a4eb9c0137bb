"""Read a compressed model. Altered files are refused, and nothing that an artifact names is ever run or imported."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from geta_core.artifact.example import example_zeros
from geta_core.artifact.graph_json import check_tensor_names, decode
from geta_core.artifact.manifest import TENSORS, field, read
from geta_core.artifact.tensors import restored
from geta_core.config import CompressionConfig
from geta_core.copying import copied
from geta_core.errors import ArtifactError, GetaError
from geta_core.graph import ExampleInputs
from geta_core.graph.capture import first_line
from geta_core.quantize import attach, detach_input_, replace_attention_
from geta_core.quantize.attach import INPUT_QUANTIZER
from geta_core.slim.native import Change, apply_

if TYPE_CHECKING:
    from geta_core.report import QuantizedWeight


def load(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Load a saved model.

    Args:
        directory: what ``compressed.save`` wrote.
        model: a dense instance of the user's own class; it is slimmed and filled in place. Without it, the module of
            the artifact's graph is returned.

    Returns:
        The model in eval mode.

    Raises:
        ArtifactError: if a file is missing, truncated or altered, or ``model`` does not fit (it is then unchanged).
    """
    folder = Path(directory)
    manifest = read(folder)
    try:
        tensors = _read_tensors(folder, manifest)
        if model is None:
            return _graph(manifest, tensors).eval()
        return _fill(model, manifest, tensors).eval()
    except GetaError:
        raise
    except Exception as error:
        raise ArtifactError(f"load: {folder} is damaged: {first_line(error)}") from error


@dataclass(frozen=True)
class Opened:
    """An artifact with what an export or an audit needs of it."""

    folder: Path
    manifest: dict[str, Any]
    file: dict[str, Tensor]
    """The stored tensors: packed levels, steps, and the rest."""
    model: nn.Module
    """The module of the graph, in eval mode."""
    weights: dict[str, QuantizedWeight]
    """Bit widths and steps of the quantized weights by name."""

    def inputs(self) -> ExampleInputs:
        """Zeros of the example's shapes."""
        return example_zeros(self.manifest)


def open_artifact(directory: str | os.PathLike[str]) -> Opened:
    """Read an artifact whole.

    Raises:
        ArtifactError: as :func:`load`.
    """
    from geta_core.report import QuantizedWeight

    folder = Path(directory)
    manifest = read(folder)
    try:
        file = _stored_tensors(folder, manifest)
        table = manifest["tensors"]
        tensors = {name: restored(name, entry, file) for name, entry in table.items()}
        model = _graph(manifest, tensors).eval()
        weights = {
            alias: QuantizedWeight(
                torch.tensor(entry["bits"], dtype=torch.int16).reshape(file[entry["step"]].shape), file[entry["step"]]
            )
            for entry in table.values()
            if "step" in entry
            for alias in entry["names"]
        }
    except GetaError:
        raise
    except Exception as error:
        raise ArtifactError(f"load: {folder} is damaged: {first_line(error)}") from error
    return Opened(folder, manifest, file, model, weights)


def _read_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of the model under its first name, in the model's type."""
    file = _stored_tensors(folder, manifest)
    return {name: restored(name, entry, file) for name, entry in manifest["tensors"].items()}


def _stored_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the file, checked against the manifest's list."""
    path = folder / TENSORS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"load: cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != manifest.get("tensors_sha256"):
        raise ArtifactError(f"load: {path} does not have the checksum of its manifest; it is truncated or altered")
    try:
        file = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"load: {path} is not a safetensors file: {error}") from error
    table = field(manifest, "tensors", dict)
    check_tensor_names(alias for entry in table.values() for alias in entry["names"])
    missing = [key for name, entry in table.items() for key in (name, entry.get("step", name)) if key not in file]
    if missing:
        raise ArtifactError(f"load: {path} and its manifest do not belong together: there is no {missing[0]!r}")
    return file


def _every_name(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], *kinds: str) -> dict[str, Tensor]:
    """The tensors of the given kinds, under all of their names."""
    entries = {name: entry for name, entry in manifest["tensors"].items() if entry["kind"] in kinds}
    return {alias: tensors[name] for name, entry in entries.items() for alias in entry["names"]}


def _graph(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    unsaved = _every_name(manifest, tensors, "unsaved", "constant")
    every = _every_name(manifest, tensors, "parameter", "buffer") | unsaved
    module = decode(field(manifest, "graph", dict), every)
    for name in unsaved:
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._non_persistent_buffers_set.add(leaf)
    return module


def _fill(model: nn.Module, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Cut a dense instance as the artifact says, and load the tensors into it; first a copy, then the model itself."""
    if not field(manifest, "native", bool):
        raise ArtifactError(
            "load: this artifact is a graph; the model's own class cannot hold it. Load it without model="
        )
    trial = copied(model)
    try:
        _into(trial, manifest, tensors)
    except ArtifactError:
        raise
    except Exception as error:
        text = " ".join(part.strip() for part in str(error).strip().splitlines()[:2])
        raise ArtifactError(f"load: the given model does not fit the artifact: {text}") from error
    _into(model, manifest, tensors)
    return model


def _into(model: nn.Module, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    keep = {(k["name"], k["dim"]): torch.tensor(k["indices"], dtype=torch.long) for k in manifest["kept"]}
    changes = [Change(**change) for change in manifest["changes"]]
    for change in changes:
        held = vars(model.get_submodule(change.module)).get(change.attribute)
        if type(held) is not int or type(change.value) is not int:
            raise ArtifactError(f"load: the given model has no whole number {change.module}.{change.attribute}")
    replace_attention_(model)
    apply_(model, keep, changes)
    state = _every_name(manifest, tensors, "parameter", "buffer")
    _attach_inputs(model, field(manifest, "inputs", list), state)
    # Modules may ask which version of themselves a state is of: their own, since the class is the same.
    versioned = OrderedDict(state)
    vars(versioned)["_metadata"] = vars(model.state_dict())["_metadata"]
    model.load_state_dict(versioned, strict=True)
    with torch.no_grad():
        for name, value in _every_name(manifest, tensors, "unsaved").items():
            model.get_buffer(name).copy_(value)


def _attach_inputs(model: nn.Module, inputs: list[dict[str, Any]], state: dict[str, Tensor]) -> None:
    """Put quantizers on the listed layers' inputs, and their kind of grid into ``state``."""
    if not inputs:
        return
    wanted = {entry["module"] for entry in inputs}
    learned = any(entry["exponent"] for entry in inputs)
    config = CompressionConfig(weight_bits=None, activation_bits=(2, 16), learn_activation_exponent=learned)
    for site in attach(model, config):
        if site.module_name not in wanted:
            detach_input_(site)
    for entry in inputs:
        state[f"{entry['module']}.{INPUT_QUANTIZER}._extra_state".lstrip(".")] = torch.tensor(bool(entry["signed"]))
