"""Sizes that an artifact only declares cost no memory."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import geta_core as geta
from geta_core.artifact.reader import open_artifact
from tests.geta_core.artifact.saved import copied, manifest_of, refused, replace_tensors, rewrite
from tests.geta_core.compressing import batch, compressed_net

Saved = Callable[[str, str], Path]
TEN_GB = 10 * 2**30


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    return copied(saved("vgg7", "W"), tmp_path / "artifact")


def test_ten_gigabytes_in_the_header_of_the_tensors(folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    entry = {"dtype": "F32", "shape": [TEN_GB // 4], "data_offsets": [0, TEN_GB]}
    header = json.dumps(dict.fromkeys(manifest_of(folder)["tensors"], entry)).encode()
    replace_tensors(folder, struct.pack("<Q", len(header)) + header + bytes(64))
    refused(folder, "is not a safetensors file")
    replace_tensors(folder, struct.pack("<Q", TEN_GB) + header)
    refused(folder, "is not a safetensors file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "a gigabyte was taken (in KiB)"


@pytest.mark.parametrize(
    "leaf",
    [
        {"shape": [TEN_GB], "dtype": "float32"},
        {"shape": [2**20, 2**20], "dtype": "float32"},
        {"shape": [-1, 3], "dtype": "float32"},
        {"shape": [2.5], "dtype": "float32"},
        {"shape": "ab", "dtype": "float32"},
        {"shape": [2, 3, 32, 32], "dtype": "float33"},
        {},
    ],
)
def test_an_example_that_is_none(folder: Path, leaf: dict[str, Any]) -> None:
    rewrite(folder, lambda m: m["example"].update(leaves=[leaf]))
    opened = open_artifact(folder)
    with pytest.raises(geta.ArtifactError, match="example of the artifact is not valid"):
        opened.inputs()


def test_the_example_has_its_shapes_and_no_values(saved: Saved) -> None:
    for net in ("vgg7", "encoder"):
        opened = open_artifact(saved(net, "W"))
        (x,) = opened.inputs().args
        assert (x.shape, x.dtype) == (batch(net).shape, batch(net).dtype)
        assert not x.any()
        with torch.no_grad():
            own = compressed_net(net, "W").model(batch(net))
            assert torch.equal(opened.model(batch(net)), own)
        assert opened.weights.keys() >= compressed_net(net, "W").weights.keys()


def test_an_artifact_without_an_example_says_so(folder: Path) -> None:
    rewrite(folder, lambda m: m.pop("example"))
    geta.load(folder)
    with pytest.raises(geta.ArtifactError, match="save it again"):
        open_artifact(folder).inputs()
