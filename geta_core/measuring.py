"""Costs of any model: plain, prepared or compressed."""

from __future__ import annotations

from typing import Any

from torch import nn

from geta_core.accounting import Measurement
from geta_core.config import CompressionConfig
from geta_core.copying import copied
from geta_core.finishing import Compressed
from geta_core.prepared import Prepared, prepare


def measure(model: nn.Module | Prepared | Compressed, example_inputs: Any = None) -> Measurement:
    """Count parameters, MACs, BOPs, average bits and bytes; the model is not changed.

    Args:
        model: a module (its weights count 32 bits; input quantizers that it carries are not looked at), a prepared
        model
            (with the groups that are zero now removed, at the bits of now), or a compressed one.
        example_inputs: inputs of a module: a tensor, a tuple or a dict; not needed otherwise.

    Returns:
        The costs per example.

    Raises:
        GetaError: if the forward fails on the example or the model cannot be traced.
    """
    if isinstance(model, Compressed):
        return model.report.measurement
    if isinstance(model, Prepared):
        return model.measure()
    config = CompressionConfig(sparsity=0.0, weight_bits=None)
    return prepare(copied(model), example_inputs, config).measure()
