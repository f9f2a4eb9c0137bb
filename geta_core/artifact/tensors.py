"""Which tensors an artifact stores, and in which type."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NARROW_BITS = 8


def integer_type(bits: int) -> torch.dtype:
    """The narrowest type that holds the signed levels of a bit width."""
    return torch.int8 if bits <= NARROW_BITS else torch.int16


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, under its first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def stored_size(model: nn.Module, bits: Mapping[str, int]) -> int:
    """Bytes of all stored tensors: quantized weights as integers with a float32 step each, the rest as it is."""
    total = 0
    for name, tensor in named_tensors(model).items():
        width = integer_type(bits[name]).itemsize if name in bits else tensor.element_size()
        total += tensor.numel() * width
    return total
