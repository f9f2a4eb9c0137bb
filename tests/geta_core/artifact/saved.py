"""Ways to look into an artifact and to alter it."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

import geta_core as geta
from geta_core.artifact.manifest import MANIFEST, TENSORS, dumps


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / TENSORS)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], *, seal: bool = True) -> None:
    """Change the manifest in place; sealed as an attacker would do it, with a checksum that fits."""
    manifest = copy.deepcopy(manifest_of(folder))
    change(manifest)
    text = dumps(manifest) if seal else json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(text)


def replace_tensors(folder: Path, data: bytes) -> None:
    """Put other bytes into the tensors' file, with checksums that fit."""
    (folder / TENSORS).write_bytes(data)
    rewrite(folder, lambda m: m.update(tensors_sha256=hashlib.sha256(data).hexdigest()))


def refused(folder: Path, *words: str) -> None:
    """Loading fails with one line that holds the words."""
    with pytest.raises(geta.ArtifactError) as caught:
        geta.load(folder)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))
