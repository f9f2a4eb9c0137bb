"""A real Ray cluster of several nodes on this machine: ``python -m ...cluster NODES...`` with "CPUs+GPUs" for each.

Prints its address, asks for the token in RAY_AUTH_TOKEN, listens on loopback alone, and ends with its standard input.
The GPUs are numbers only: Ray hands them out as if they were there.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.launchers.processes import MARK, private_folder

ROOT = Path(__file__).resolve().parents[3]
MODULE = "tests.orchestration.distributed.cluster"
OBJECT_STORE = 80 * 2**20


@dataclass(frozen=True)
class RunningCluster:
    """A cluster that is up."""

    address: str
    environment: dict[str, str]
    """What a process needs to be let in."""


@contextmanager
def cluster(nodes: Sequence[str]) -> Iterator[RunningCluster]:
    """Bring a cluster up for the block.

    Args:
        nodes: "CPUs+GPUs" of each.
    """
    launch = f"cluster-{secrets.token_hex(4)}"
    shared = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with private_folder(launch) as folder:
        (folder / "ray").mkdir()  # where Ray notes the address of the newest cluster
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, *nodes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("wb"),
            cwd=ROOT,
            env={**os.environ, **shared, MARK: launch, "TMPDIR": str(folder)},
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with process.stdin, process.stdout:
                address = process.stdout.readline().decode().strip()
                assert address, (folder / "log").read_text()
                yield RunningCluster(address, shared)
        finally:
            process.wait(60)


def main(nodes: Sequence[str]) -> None:
    from ray.cluster_utils import Cluster

    ray_cluster: Any = Cluster()
    for number, node in enumerate(nodes):
        cpus, _, gpus = node.partition("+")
        ray_cluster.add_node(
            num_cpus=int(cpus),
            num_gpus=int(gpus or 0),
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            **({"temp_dir": os.environ["TMPDIR"]} if number == 0 else {}),
        )
    sys.stdout.write(f"{ray_cluster.address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray_cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
