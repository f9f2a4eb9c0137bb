"""Calls a model on a batch as tasks form it, and watches what reaches its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 1 << 16
"""Values of an input that are kept per calibration batch."""


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple of positional inputs or a dict of keyword inputs."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients, and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def sample_inputs(model: nn.Module, quantizers: Sequence[nn.Module], batches: Sequence[Any]) -> list[Tensor | None]:
    """Return values that reach each quantizer, flat; None where nothing arrives. The model runs in evaluation mode."""
    kept: list[list[Tensor]] = [[] for _ in quantizers]
    handles = [
        quantizer.register_forward_pre_hook(_keeper(values)) for quantizer, values in zip(quantizers, kept, strict=True)
    ]
    try:
        with evaluating(model):
            for batch in batches:
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(values) if values else None for values in kept]


def _keeper(values: list[Tensor]) -> Any:
    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        flat = arguments[0].detach().flatten()
        # Evenly spaced values instead of random ones: the same sample every time.
        step = -(-flat.numel() // SAMPLES)
        values.append(flat[::step].float())

    return keep
