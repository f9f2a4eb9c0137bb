"""Addresses and ports of the nodes of a batch job."""

from __future__ import annotations

import contextlib
import os
import socket

from geta_core.errors import GetaError
from orchestration.launchers import scheduler

FIRST_PORT, BLOCKS, BLOCK = 10000, 227, 100
"""Ports lie in blocks of a hundred, below those that systems hand out by themselves (32768 and up)."""


def own_address(node: str) -> str:
    """Return the address by which other nodes reach this one: Slurm's, or what its name stands for.

    Args:
        node: this node's name in Slurm.

    Raises:
        GetaError: when there is none but loopback.
    """
    for name in (scheduler.node_address(node), node, os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")):
        with contextlib.suppress(OSError):
            found = socket.gethostbyname(name) if name else ""
            # A name in /etc/hosts may stand for loopback.
            if found and not found.startswith("127.") and _is_own(found):
                return found
    raise GetaError(f"the node {node} has no address of its own that the other nodes could reach: see `geta doctor`")


def _is_own(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def address_towards(other: str) -> str:
    """Return the address by which this machine reaches another one (``host:port``); nothing is sent."""
    host, _, port = other.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def free_block(job: int, address: str) -> int:
    """Return the first port of a free block.

    Args:
        job: number of the job; the block belongs to it if none of its ports is taken.
        address: on which the ports are tried.

    Raises:
        GetaError: when no block is free.
    """
    for turn in range(BLOCKS):
        first = FIRST_PORT + (job + turn) % BLOCKS * BLOCK
        if all(_free(address, first + number) for number in range(BLOCK)):
            return first
    raise GetaError(f"Ray needs {BLOCK} free ports, but this node has no free block between {FIRST_PORT} and 32700")


def _free(address: str, port: int) -> bool:
    for host in (address, ""):  # also where someone listens on every address
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def answers(host: str, port: int) -> bool:
    """Whether someone listens at an address."""
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
