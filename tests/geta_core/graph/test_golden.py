"""The groups of whole models, as committed texts: a change of any of them has to be meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import geta_core as geta
from orchestration.models import build_small, example_inputs
from tests.geta_core.graph.listing import listing

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # file: model, its options, configuration
    "vgg7": ("vgg7", {}, {}),
    "resnet20": ("resnet20", {}, {}),
    "mobilenetv2": ("mobilenetv2", {}, {}),
    "vit_head": ("vit", {"depth": 1}, {"heads": "head"}),
    "vit_head_dim": ("vit", {"depth": 1}, {"heads": "head_dim"}),
    "vit_normalized": ("vit", {"depth": 1}, {"prune_normalized": True}),
    "unet": ("unet", {}, {}),
    "encoder": ("encoder", {"depth": 1}, {}),
    "densenet": ("densenet_bc", {}, {}),
    "seresnet18": ("seresnet18", {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str, golden: Callable[[Path, str], None]) -> None:
    model, options, settings = CASES[name]
    config = geta.CompressionConfig(weight_bits=None, **settings)
    prepared = geta.prepare(build_small(model, **options), example_inputs(model, small=True), config)
    golden(Path(__file__).parent / "golden" / f"{name}.txt", listing(prepared))
