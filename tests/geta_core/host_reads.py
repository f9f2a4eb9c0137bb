"""Counts the operations that make the host wait for the device, as they are dispatched; needs torch alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
# Their result is a host number, or a tensor whose size depends on the values.
READS = {
    ATEN._local_scalar_dense,
    ATEN.nonzero,
    ATEN.nonzero_static,
    ATEN.masked_select,
    ATEN.equal,
    ATEN._unique2,
    ATEN.unique_dim,
    ATEN.unique_consecutive,
    ATEN.bincount,
    ATEN.repeat_interleave,
}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}


class HostReads(TorchDispatchMode):
    """Counts every operation in ``all``, and in ``reads`` those that make the host wait for the device.

    Counted as reads are the operations of ``READS``, indexing with a mask, and copies from another device to the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operation and run it."""
        kwargs = kwargs or {}
        packet = func.overloadpacket
        self.all[str(packet)] += 1
        if packet in READS or (packet in INDEXING and any(_masks(args[1]))) or _to_host(packet, args, kwargs):
            self.reads[str(packet)] += 1
        return func(*args, **kwargs)


def _masks(indices: Any) -> Iterator[bool]:
    return (isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in tree_leaves(indices))


def _to_host(packet: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether the operation copies from another device to the CPU."""
    if packet in (ATEN.copy_, ATEN._foreach_copy_):
        targets, sources = tree_leaves(args[0]), tree_leaves(args[1])
    elif packet is ATEN._to_copy and kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == "cpu" and args[0].device.type != "cpu"
    else:
        return False
    pairs = zip(targets, sources, strict=True)
    return any(to.device.type == "cpu" and source.device.type != "cpu" for to, source in pairs)
