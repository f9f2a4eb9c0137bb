"""The tests' own eyes: which sockets a command and its children listen on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.orchestration.watched import Watched, outside, readable

CHILD = """
import socket, sys, time
kept = []
for family, address in ((socket.AF_INET, sys.argv[1]), (socket.AF_INET6, sys.argv[2])):
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen()
    kept.append(listener)
time.sleep(1.5)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)"


@pytest.mark.needs("proc")
@pytest.mark.parametrize(
    ("addresses", "reachable"), [(("127.0.0.1", "::1"), set()), (("0.0.0.0", "::"), {"0.0.0.0", "::"})]
)
def test_the_sockets_of_a_child_are_seen(tmp_path: Path, addresses: tuple[str, str], reachable: set[str]) -> None:
    run = Watched([sys.executable, "-c", PARENT, CHILD, *addresses], tmp_path / "log")
    assert run.wait() == 0, run.text()
    assert {address for address, _ in run.listening} == set(addresses)
    assert {address for address, _ in outside(run.listening)} == reachable
    assert len(run.processes) >= 2 and not run.alive()


def test_rows_of_the_systems_table() -> None:
    assert readable("0100007F:1F90") == "127.0.0.1"
    assert readable("00000000000000000000000001000000:1F90") == "::1"
    mapped = readable("0000000000000000FFFF00000100007F:1F90")
    assert not outside({(mapped, "x")}) and outside({("10.0.0.1", "x")})
