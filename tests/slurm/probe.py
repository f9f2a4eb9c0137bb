"""What listens on the nodes, and what it answers a stranger."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestration.launchers.processes import MARK
from tests.slurm.jobs import slurm

ADDRESSES = {"node1": "10.77.0.11", "node2": "10.77.0.12"}
UNAUTHENTICATED = "16"
"""gRPC's code for a caller without the right credentials."""


@dataclass(frozen=True)
class Listener:
    """A listening socket of a process of a launch."""

    node: str
    bound: str
    port: int
    title: str
    pid: int


def listeners(job: str) -> list[Listener]:
    """Return the listening sockets of a job's Ray processes on both nodes."""
    found = []
    for node in ADDRESSES:
        for line in slurm("ip", "netns", "exec", node, "ss", "-Hltnp").splitlines():
            bound, _, port = line.split()[3].rpartition(":")
            for pid in re.findall(r"pid=(\d+)", line):
                if belongs(int(pid), job):
                    found.append(Listener(node, bound, int(port), title(int(pid)), int(pid)))
    return found


def belongs(pid: int, job: str) -> bool:
    """Whether a process, or one that it comes from, carries a job's mark; a new title may overwrite the environment."""
    try:
        chain = [psutil.Process(pid), *psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return False
    return any(f"{MARK}={job}-" in environment(each.pid) for each in chain)


def of_job(job: str) -> list[int]:
    """Return the living processes that belong to a job's Ray."""
    alive = [pid for pid in psutil.pids() if title(pid)]  # what has ended and waits for its parent has none
    return [pid for pid in alive if belongs(pid, job)]


def title(pid: int) -> str:
    """Return what a process shows as its command; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def environment(pid: int) -> str:
    """Return the environment with which a process was started, one variable a line."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode()
    except OSError:
        return ""


def grpc_status(host: str, port: int, method: str, token: str | None = None) -> str:
    """Call a method with an empty message and return the status in the answer; "closed" where there is none."""
    import h2.config
    import h2.connection
    import h2.events

    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    with socket.create_connection((host, port), timeout=5) as link:
        connection.initiate_connection()
        headers = [
            *((":method", "POST"), (":scheme", "http"), (":path", method), (":authority", f"{host}:{port}")),
            *(("te", "trailers"), ("content-type", "application/grpc")),
        ]
        if token is not None:
            headers.append(("authorization", f"Bearer {token}"))
        connection.send_headers(1, headers)
        connection.send_data(1, bytes(5), end_stream=True)
        link.sendall(connection.data_to_send())
        while data := link.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    told = {_text(name): _text(value) for name, value in event.headers or ()}
                    if "grpc-status" in told:
                        return told["grpc-status"]
                elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return "closed"
            link.sendall(connection.data_to_send())
    return "closed"


def http_status(host: str, port: int, path: str, token: str | None = None) -> int:
    """Post nothing to a path and return the status of the answer."""
    import http.client

    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("POST", path, body=b"", headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status
    finally:
        connection.close()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
