"""What a compressed model reports about itself: what was removed, what it costs now, and the proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from geta_core.accounting import Layer, Measurement


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight of the compressed model: whole numbers times ``step``.

    ``step`` is 0-dim, or broadcasts along the channel axis.
    """

    bits: Tensor
    step: Tensor


@dataclass(frozen=True)
class Report:
    """What was removed, what it costs now, and the proof."""

    measurement: Measurement
    dense: Measurement
    groups: int
    """Prunable groups."""
    removed: int
    """Groups that were removed."""
    native: bool
    """Whether the result is the user's own module class; otherwise it is a graph module."""
    native_refusal: str
    """Why it is not, empty if it is."""
    train_refusal: str
    """Why train mode of a graph module is that of eval mode (normalizations apart); empty if it is the model's own."""
    max_error64: float
    """Largest difference between zeroed and slimmed model in float64; where a forward rounds to float32 by itself and
    that alone differs by more than the proof allows, without this rounding."""
    max_error32: float
    """The same in float32."""
    flipped_share: float | None
    """Share of the quantized inputs whose level differs in float32; None without activation quantizers."""
    inexact: int
    """Removed groups that a normalization reduces over (opted in by ``prune_normalized``)."""
    unquantized: Mapping[str, str | None]
    """Inputs that could not be quantized, with the reason."""

    @property
    def group_sparsity(self) -> float:
        """Removed share of the prunable groups."""
        return self.removed / self.groups if self.groups else 0.0

    @property
    def relative_bops(self) -> float:
        """BOPs over those of the dense float model, definition ``paper``."""
        return self.measurement.relative_bops(self.dense.macs)

    @property
    def relative_sparse_bops(self) -> float:
        """The same under definition ``sparse``, which counts nonzero weights alone."""
        share = self.measurement.bops_sparse / self.measurement.bops if self.measurement.bops else 0.0
        return self.relative_bops * share

    @property
    def parameters(self) -> int:
        """Elements of the parameters that stay."""
        return self.measurement.parameters

    @property
    def dense_parameters(self) -> int:
        """Elements of the dense model's parameters."""
        return self.dense.parameters

    @property
    def macs(self) -> float:
        """MACs per example, definition ``paper``."""
        return self.measurement.macs

    @property
    def dense_macs(self) -> float:
        """MACs per example of the dense model, definition ``paper``."""
        return self.dense.macs

    @property
    def weight_bits(self) -> float:
        """Average weight bits."""
        return self.measurement.weight_bits

    @property
    def activation_bits(self) -> float:
        """Average input bits."""
        return self.measurement.activation_bits

    @property
    def bytes(self) -> int:
        """Bytes of the stored tensors."""
        return self.measurement.bytes

    @property
    def layers(self) -> tuple[Layer, ...]:
        """One row per multiplication."""
        return self.measurement.layers
