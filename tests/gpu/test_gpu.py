"""The checks as tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.gpu.checks import CHECKS

pytestmark = [pytest.mark.needs("gpu")]


@pytest.mark.parametrize("name", CHECKS)
def test_gpu(name: str, record_property: Callable[[str, object], None]) -> None:
    record_property("found", CHECKS[name]())
