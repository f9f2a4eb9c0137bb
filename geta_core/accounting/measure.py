"""What a model costs, as one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from geta_core.accounting.cost import FLOAT_BITS, Layer, average_bits, bops, macs


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Costs of one model; MACs and BOPs are per example."""

    parameters: int
    """Elements of all parameters, the quantizers' own excluded."""
    macs: float
    """Multiply-accumulates of convolutions and linear layers (definition ``paper``)."""
    macs_all: float
    """The same with products of activations (definition ``all``)."""
    bops: float
    """MACs times weight bits times input bits (definition ``paper``)."""
    bops_all: float
    """The same under definition ``all``."""
    bops_sparse: float
    """Those of nonzero weights alone (definition ``sparse``); equal to ``bops`` where weights are not looked at."""
    weight_bits: float
    """Average over the elements of the weights; 32 where a weight is not quantized."""
    activation_bits: float
    """Average over the layers' inputs; 32 where an input is not quantized."""
    bytes: int
    """Size of the tensors that an artifact stores."""
    layers: tuple[Layer, ...]
    """One row per multiplication."""

    def relative_bops(self, dense_macs: float) -> float:
        """BOPs over those of a dense float model with ``dense_macs``."""
        return self.bops / (dense_macs * FLOAT_BITS * FLOAT_BITS) if dense_macs else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def measurement(layers: Sequence[Layer], parameters: int, size: int) -> Measurement:
    """Sum the rows of an account."""
    weight_bits, activation_bits = average_bits(layers)
    return Measurement(
        parameters=parameters,
        macs=macs(layers),
        macs_all=macs(layers, "all"),
        bops=bops(layers),
        bops_all=bops(layers, "all"),
        bops_sparse=bops(layers, "sparse"),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        bytes=size,
        layers=tuple(layers),
    )
