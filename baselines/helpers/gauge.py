"""Relative BOPs of a model for any set of removed groups and any bit widths, without training: the one accountant."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import geta_core as geta
from geta_core.accounting import FLOAT_BITS
from geta_core.planning import evenly
from geta_core.qasso.selection import Selector

Bits = int | None
"""A bit width, or None for floating point."""


class Gauge:
    """Counts what a model would cost.

    Args:
        prepared: a prepared model; its groups are what can be removed.
        quantized: for each multiplication of the account, whether its weight and its input have quantizers; taken from
            a quantized copy of the model where ``prepared`` itself has none (``Gauge.of``).
    """

    def __init__(self, prepared: geta.Prepared, quantized: Sequence[tuple[bool, bool]]) -> None:
        self.prepared = prepared
        self._quantized = quantized
        self._float = {site.name: float(FLOAT_BITS) for site in prepared.sites}
        self._dense = sum(layer.macs for layer in prepared.dense if layer.counted) * FLOAT_BITS**2

    @classmethod
    def of(cls, prepared: geta.Prepared) -> Gauge:
        """Return the gauge of a prepared model, as it would be with quantizers on all weights and layer inputs."""
        source = prepared if prepared.sites else _quantized_copy(prepared.model, prepared.inputs)
        found = [(p.weight_site is not None, p.input_site is not None) for p in source.account.products]
        return cls(prepared, found)

    def relative_bops(self, dead: Tensor, weight_bits: Bits, input_bits: Bits) -> float:
        """Return BOPs over those of the dense float model.

        Args:
            dead: removed groups, bool [num_prunable].
            weight_bits: of every weight that can be quantized.
            input_bits: of every layer input that can be quantized.
        """
        layers = self.prepared.account.layers(dead, self._float)
        total = 0.0
        for layer, (weight, inputs) in zip(layers, self._quantized, strict=True):
            if layer.counted:
                wide = weight_bits if weight and weight_bits is not None else FLOAT_BITS
                total += layer.macs * wide * (input_bits if inputs and input_bits is not None else FLOAT_BITS)
        return total / self._dense if self._dense else 0.0

    def evenly(self, count: int, selector: Selector) -> Tensor:
        """Return ``count`` removed groups, bool [num_prunable], the same share of every family as far as it goes."""
        return evenly(self.prepared.family, count, selector)


def float_model(model: nn.Module, example_inputs: Any) -> geta.Prepared:
    """Return a prepared copy of a float model; the model itself stays as it is."""
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=None, activation_bits=None)
    return geta.prepare(copy.deepcopy(model), example_inputs, config)


def _quantized_copy(model: nn.Module, inputs: Any) -> geta.Prepared:
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=(8, 8), activation_bits=(8, 8))
    return geta.prepare(copy.deepcopy(model), inputs, config)
