"""The checks as tests."""

from __future__ import annotations

import pytest

from tests.gpu.checks import CHECKS

pytestmark = [pytest.mark.needs("gpu")]


@pytest.mark.parametrize("name", CHECKS)
def test_gpu(name: str) -> None:
    print(CHECKS[name]())
