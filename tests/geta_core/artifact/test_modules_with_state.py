"""Modules whose names are no identifiers, and modules that look at the version of what they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta


class Versioned(nn.Linear):
    """A layer that loads only a state which says its version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Hyphens(nn.Module):
    """Blocks called ``block-0`` and ``1-block``, as torchvision's RegNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("block-0", nn.Linear(4, 8))
        self.add_module("1-block", nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.children()
        return last(torch.relu(first(x)))


def versioned() -> nn.Module:
    return nn.Sequential(Versioned(4, 8), nn.ReLU(), Versioned(8, 3))


@pytest.mark.parametrize("build", [versioned, Hyphens])
def test_what_is_loaded_is_what_was_saved(build: Any, tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    config = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8), initial_bits=8)
    prepared = geta.prepare(build(), torch.randn(2, 4), config)
    prepared.zero_([0, 5])
    compressed = geta.finish(prepared)
    assert compressed.report.native
    compressed.save(tmp_path)
    expected = compressed.model(x)
    assert torch.equal(geta.load(tmp_path)(x), expected)
    loaded = geta.load(tmp_path, build())
    assert torch.equal(loaded(x), expected)
    assert loaded.state_dict().keys() == compressed.model.state_dict().keys()


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b", "a b", "a.", ".a", "a(", "__a", "b.__a", "a-\n", ""])
def test_other_names_are_refused(name: str) -> None:
    from geta_core.artifact.graph_json import check_tensor_names

    with pytest.raises(geta.ArtifactError, match="is not a valid tensor name"):
        check_tensor_names([name])
