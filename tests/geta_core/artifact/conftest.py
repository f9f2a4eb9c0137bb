"""Artifacts of the small nets, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.geta_core.compressing import compressed_net


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function that gives the artifact of a net in a mode: not to be changed."""
    root = tmp_path_factory.mktemp("artifacts")

    def folder(net: str, mode: str) -> Path:
        place = root / f"{net}-{mode}".replace(" ", "-")
        if not place.exists():
            compressed_net(net, mode).save(place)
        return place

    return folder
