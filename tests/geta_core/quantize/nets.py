"""Small networks and helpers that several tests use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geta_core.config import CompressionConfig
from geta_core.quantize import QuantSite, attach, blocks, calibrate_, get_kernel, kernels, set_kernel


class Tied(nn.Module):
    """An embedding whose weight is also that of the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.embedding(index).tanh())


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 5)
    )


def config(weights: bool = True, inputs: bool = True, bits: int = 6, **rest: object) -> CompressionConfig:
    return CompressionConfig(
        weight_bits=(2, bits) if weights else None,
        activation_bits=(2, bits) if inputs else None,
        initial_bits=bits,
        **rest,  # type: ignore[arg-type]
    )


def quantized(model: nn.Module, batch: Tensor, settings: CompressionConfig) -> list[QuantSite]:
    """Attach to the model and calibrate it on one batch."""
    sites = attach(model, settings)
    calibrate_(model, sites, [batch], lambda module, x: module(x))
    return sites


def gradients(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """Return the gradients of all parameters after one backward pass; every parameter must have one."""
    model.zero_grad()
    model(batch).square().mean().backward()
    found = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found.append(parameter.grad.clone())
    return found


@contextmanager
def kernel(name: kernels.Kernel) -> Iterator[None]:
    before = get_kernel()
    set_kernel(name)
    try:
        yield
    finally:
        set_kernel(before)


@contextmanager
def block_size(elements: int) -> Iterator[None]:
    """Make the blocked code run for every size, in blocks of this many elements."""
    before = blocks.BLOCK, blocks.LEAST
    blocks.BLOCK, blocks.LEAST = elements, 1
    try:
        yield
    finally:
        blocks.BLOCK, blocks.LEAST = before


def triple(q_m: float, bits: float, t: float | None, signed: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return [d, q_m, t] (or [d, q_m]) as 0-dim tensors for the given number of bits."""
    top = (q_m if t is None else q_m**t) / (2 ** (bits - 1 if signed else bits) - 1)
    return [torch.tensor(value, dtype=dtype) for value in (top, q_m, t) if value is not None]
