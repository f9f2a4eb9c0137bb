"""The workers of one run, and the few things they tell each other.

A :class:`World` of one touches nothing of torch.distributed. In a :class:`Group` tensors on the CPU go over gloo and
those on a GPU over NCCL, or over gloo where workers share a GPU. The leader (worker 0) alone writes files.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orchestration.tasks.base import Part

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

LOOPBACK = "127.0.0.1"
PATIENCE = timedelta(days=365)
"""How long a worker waits for the leader; the wait ends at once when the leader's process does."""
SIOCGIFADDR = 0x8915
"""Linux's request for the address of a network interface (netdevice(7))."""

Meet = Callable[[str | None], str | None]
"""Hands the leader's text to every worker: the leader gives it and the others None; all get it back."""


class World:
    """One worker alone; every exchange gives back what was put in.

    Attributes:
        rank: number of this worker, 0 for the leader.
        size: number of workers.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.rank == 0

    @property
    def part(self) -> Part:
        """This worker's share of whatever is divided."""
        return Part(self.rank, self.size)

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return, for each place, the largest of the workers' whole numbers."""
        return list(values)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over the workers."""

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the workers."""
        return tensor

    def share_(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors by the leader's."""

    def collect(self, data: bytes) -> list[bytes]:
        """Return every worker's bytes, by rank."""
        return [data]

    def tell(self, text: str) -> str:
        """Return the leader's text."""
        return text

    def follow_leader(self) -> None:
        """Wait until the leader has come this far, however long that takes; the leader does not wait."""

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the others enter the block when the leader has left it."""
        if not self.leads:
            self.follow_leader()
        yield
        if self.leads:
            self.follow_leader()

    def close(self) -> None:
        """Part from the others when all have come this far."""


class Group(World):
    """One of several workers; each method is called by all of them, in the same order.

    Args:
        rank: of this worker.
        size: number of workers.
        store: where the workers met.
    """

    def __init__(self, rank: int, size: int, store: TCPStore) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._turns = 0

    @classmethod
    def join(cls, rank: int, size: int, meet: Meet, *, host: str, backend: str, timeout_s: float) -> Group:
        """Meet the other workers.

        Nothing listens on more than one address: the store on ``host`` of the leader, gloo and NCCL on the network
        interface of this worker's ``host``.

        Args:
            rank: of this worker.
            size: number of workers.
            meet: brings the leader's address to the others.
            host: address of this worker that the others reach; loopback where all are on one machine.
            backend: "gloo", or "cpu:gloo,cuda:nccl".
            timeout_s: after this many seconds in one exchange a worker gives the others up.
        """
        import torch.distributed as dist
        from torch._C._distributed_c10d import TCPStore

        name = interface_of(host)
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            if name is not None:
                os.environ.setdefault(variable, name)
        limit = timedelta(seconds=timeout_s)
        if rank == 0:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind((host, 0))
            listener.listen(size)
            port = listener.getsockname()[1]
            # Without a socket of ours the store would listen on every address; it closes this one itself.
            descriptor = listener.detach()
            store = TCPStore(
                host, port, size, True, limit, wait_for_workers=False, master_listen_fd=descriptor, use_libuv=True
            )
            meet(f"{host}:{port}")
        else:
            leader, _, text = str(meet(None)).rpartition(":")
            store = TCPStore(leader, int(text), size, False, limit, wait_for_workers=False)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        return cls(rank, size, store)

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return, for each place, the largest of the workers' whole numbers."""
        import torch.distributed as dist

        numbers = torch.tensor(list(values), dtype=torch.int64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return [int(number) for number in numbers.tolist()]

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over the workers."""
        if not tensors:
            return
        flat = self.total(torch.cat([tensor.detach().reshape(-1) for tensor in tensors])) / self.size
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the workers."""
        import torch.distributed as dist

        summed = tensor.detach().clone()
        dist.all_reduce(summed)
        return summed

    @torch.no_grad()
    def share_(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors by the leader's."""
        import torch.distributed as dist

        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)

    def collect(self, data: bytes) -> list[bytes]:
        """Return every worker's bytes, by rank."""
        import torch.distributed as dist

        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]))
        longest = max(int(length) for length in lengths)
        if longest == 0:
            return [b""] * self.size
        padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return [bytes(each.numpy().tobytes()[: int(length)]) for each, length in zip(found, lengths, strict=True)]

    def tell(self, text: str) -> str:
        """Return the leader's text."""
        return self.collect(text.encode() if self.leads else b"")[0].decode()

    def follow_leader(self) -> None:
        """Wait until the leader has come this far, however long that takes; the leader does not wait."""
        self._turns += 1
        key = f"turn-{self._turns}"
        if self.leads:
            self._store.set(key, "done")
        else:
            self._store.wait([key], PATIENCE)

    def close(self) -> None:
        """Part from the others when all have come this far."""
        import torch.distributed as dist

        self.largest([0])  # the store is in the leader's process: it must not go before the others are done with it
        dist.destroy_process_group()


def interface_of(host: str) -> str | None:
    """Return the name of the network interface that has an IPv4 address; None where that cannot be told."""
    try:
        import fcntl
    except ImportError:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == host:
                return name
    return None
