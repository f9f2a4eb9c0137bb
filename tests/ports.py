"""Ports of servers that tests start."""

from __future__ import annotations

import os

from orchestration.services.processes import free_port

APART = 2_000
"""Test processes look for ports so far from each other: one that is free for two at once would be taken twice."""


def own_port(first: int) -> int:
    """Return a free port from ``first`` on that no other process of this test run looks at."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return free_port(first + APART * int(number))
