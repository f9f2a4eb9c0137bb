"""Read a compressed model. Altered files are refused, and nothing that an artifact names is ever run or imported."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from geta_core.artifact.graph_json import decode
from geta_core.artifact.writer import FORMAT, MANIFEST, TENSORS
from geta_core.config import CompressionConfig
from geta_core.errors import ArtifactError
from geta_core.quantize import attach, detach_input_, replace_attention_
from geta_core.quantize.attach import INPUT_QUANTIZER
from geta_core.slim.cut import Keep
from geta_core.slim.native import Change, apply_


def load(directory: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Load a saved model.

    Args:
        directory: what ``compressed.save`` wrote.
        model: a dense instance of the user's own class; it is slimmed and filled in place. Without it, the module
        of the
            artifact's graph is returned.

    Returns:
        The model in eval mode.

    Raises:
        ArtifactError: if a file is missing, truncated or altered, or ``model`` does not fit.
    """
    folder = Path(directory)
    manifest = _read_manifest(folder)
    tensors = _read_tensors(folder, manifest)
    if model is None:
        return decode(_field(manifest, "graph", dict), _every_name(manifest, tensors)).eval()
    return _fill(model, manifest, tensors).eval()


def _field(manifest: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(manifest.get(key), kind):
        raise ArtifactError(f"load: the manifest's {key!r} is missing or not a {kind.__name__}")
    return manifest[key]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except OSError as error:
        raise ArtifactError(f"load: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"load: {path} is not valid JSON; the artifact is damaged") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(f"load: {path} must have format {FORMAT}, but has {found!r}")
    return manifest


def _read_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor of the model under its first name, in the model's type."""
    path = folder / TENSORS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"load: cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != manifest.get("tensors_sha256"):
        raise ArtifactError(f"load: {path} does not have the checksum of its manifest; it is truncated or altered")
    try:
        stored = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"load: {path} is not a safetensors file: {error}") from error
    found = {}
    try:
        for name, entry in _field(manifest, "tensors", dict).items():
            value = stored[name]
            if "step" in entry:
                step = stored[entry["step"]]
                value = value.to(step.dtype) * step
            found[name] = nn.Parameter(value, value.is_floating_point()) if entry["parameter"] else value
    except (KeyError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"load: {path} and its manifest do not belong together ({error})") from error
    return found


def _every_name(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {alias: tensors[name] for name, entry in manifest["tensors"].items() for alias in entry["names"]}


def _fill(model: nn.Module, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Cut a dense instance as the artifact says, and load the tensors into it."""
    if not _field(manifest, "native", bool):
        raise ArtifactError(
            "load: this artifact is a graph; the model's own class cannot hold it. Load it without model="
        )
    root = replace_attention_(model)
    model = root if isinstance(root, nn.Module) else model
    keep = {(k["name"], k["dim"]): torch.tensor(k["indices"], dtype=torch.long) for k in manifest["kept"]}
    changes = [Change(**change) for change in manifest["changes"]]
    state = _state(manifest, tensors)
    trial = copy.deepcopy(model)
    try:
        _into(trial, keep, changes, manifest, state)
    except (RuntimeError, IndexError, AttributeError, KeyError) as error:
        text = " ".join(part.strip() for part in str(error).strip().splitlines()[:2])
        raise ArtifactError(f"load: the given model does not fit the artifact: {text}") from error
    _into(model, keep, changes, manifest, state)
    return model


def _into(
    model: nn.Module,
    keep: Keep,
    changes: list[Change],
    manifest: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> None:
    apply_(model, keep, changes)
    signed = {entry["module"]: entry["signed"] for entry in manifest["inputs"]}
    if signed:
        learned = any(entry["exponent"] for entry in manifest["inputs"])
        config = CompressionConfig(weight_bits=None, activation_bits=(2, 16), learn_activation_exponent=learned)
        for site in attach(model, config):
            if site.module_name in signed:
                site.quantizer.signed = signed[site.module_name]
            else:
                detach_input_(site)
    model.load_state_dict(dict(state), strict=True)


def _state(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = _every_name(manifest, tensors)
    for entry in _field(manifest, "inputs", list):
        path = f"{entry['module']}.{INPUT_QUANTIZER}._extra_state".lstrip(".")
        state[path] = torch.tensor(bool(entry["signed"]))
    return state
