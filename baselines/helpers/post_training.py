"""Post-training quantization: ranges, then rounding, of a model that is not trained any more."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.calling import call, evaluating
from baselines.helpers.hessian import Gram, damped_inverse, grams
from baselines.helpers.matrix import MatrixLayer
from baselines.helpers.ranges import RangeKind, RangeRule, fit_ranges_
from baselines.helpers.rounding import AdaRound, adaround
from baselines.helpers.sequence import require_finished
from baselines.helpers.surgeon import quantize_rows
from baselines.schema import Bounds
from geta_core.quantize import QuantSite

Bits = Annotated[int, Bounds(2, 16)]
Rounding = Literal["nearest", "adaround", "obq"]


@dataclass(frozen=True, kw_only=True)
class PostTraining:
    """How weights and layer inputs are quantized without training."""

    weight_bits: Bits = 8
    """Bit width of every weight."""
    activation_bits: Bits | None = 8
    """Bit width of every layer input; null leaves the inputs in floating point."""
    per_channel: bool = True
    """One range per output channel of a weight instead of one per tensor."""
    ranges: RangeKind = "mse"
    """minmax: the largest magnitude; percentile: method.percentile of them; mse: the range of least squared error."""
    percentile: Annotated[float, Bounds(0, 100, above=True)] = 99.99
    """Percentile of the magnitudes that is the range (ranges=percentile only)."""
    rounding: Rounding = "nearest"
    """nearest; adaround: up or down by the layer's output error; obq: one weight at a time, the others making up."""
    iterations: Annotated[int, Bounds(1)] = 10000
    """Optimization steps per layer (rounding=adaround only)."""
    damping: Annotated[float, Bounds(0, above=True)] = 0.01
    """Share of the mean diagonal that is added to a layer's Hessian (rounding=obq only)."""

    def quantized(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Quantize a trained float model and remove its zero groups.

        Args:
            prepared: without quantizers.
            calibration: batches of model inputs.
        """
        require_finished(prepared)
        inputs = self.activation_bits
        config = replace(
            prepared.config,
            sparsity=0.0,
            weight_bits=(self.weight_bits, self.weight_bits),
            activation_bits=None if inputs is None else (inputs, inputs),
            per_channel=self.per_channel,
            learn_exponent=False,
        )
        # What the quantized layers shall reproduce; rounding to nearest looks at nothing but the weights.
        original = copy.deepcopy(prepared.model) if self.rounding == "adaround" else prepared.model
        training = prepared.model.training
        prepared.model.eval()
        result = geta.prepare(prepared.model, prepared.inputs, config, calibration=list(calibration))
        prepared.model.train(training)
        fit_ranges_(result, calibration, self.weight_bits, inputs, RangeRule(self.ranges, self.percentile))
        if self.rounding == "adaround":
            round_weights_(result, calibration, self._adaround, original)
        elif self.rounding == "obq":
            round_weights_(result, calibration, self._obq, None)
        return geta.finish(result)

    def _adaround(self, weight: Tensor, step: Tensor, top: int, xx: Tensor, zx: Tensor) -> Tensor:
        return adaround(weight, step, top, xx, zx, AdaRound(iterations=self.iterations))

    def _obq(self, weight: Tensor, step: Tensor, top: int, xx: Tensor, zx: Tensor) -> Tensor:
        inverse = damped_inverse(xx, self.damping)
        groups = zip(weight.double(), inverse, step.double(), strict=True)
        return torch.stack([quantize_rows(rows, own, steps, top) for rows, own, steps in groups])


Rounder = Callable[[Tensor, Tensor, int, Tensor, Tensor], Tensor]
"""(weight [G, R, C], step [G, R, 1], largest level, E[x x^T], E[z x^T]) -> levels [G, R, C]"""


def round_weights_(
    prepared: geta.Prepared, batches: Sequence[Any], rounder: Rounder, original: nn.Module | None
) -> None:
    """Move every weight to the level that a rounder chooses, layer by layer in the order in which they run, in place.

    Each layer sees the inputs that the layers before it give when they are rounded already. Layers that are no matrix
    product of their input (transposed convolutions, attention's own projections) keep rounding to nearest, with a
    warning.

    Args:
        prepared: with quantizers that have their ranges.
        batches: model inputs.
        rounder: chooses the levels.
        original: the float model, whose layers' outputs are to be reproduced; None: those for the same inputs.
    """
    there = {} if original is None else dict(original.named_modules())
    left = []
    for site in in_order(prepared, batches):
        layer = matrix_of(site)
        if layer is None:
            left.append(site.name)
            continue
        pair = None if original is None else (original, {site.module: there[site.module_name]})
        gram = grams(prepared.model, {site.module: layer}, batches, pair)[site.module]
        _round_(site, layer, gram, rounder)
    if left:
        warnings.warn(f"rounded to nearest, being no matrix products of their input: {', '.join(left)}", stacklevel=2)


@torch.no_grad()
def _round_(site: QuantSite, layer: MatrixLayer, gram: Gram, rounder: Rounder) -> None:
    weight, quantizer = site.parameter, site.quantizer
    assert weight is not None
    if gram.empty:
        return
    bits = int(quantizer.bits().max().round())
    step = layer.per_row(quantizer.d)
    levels = rounder(layer.matrix(weight.detach()), step, 2 ** (bits - 1) - 1, gram.xx, gram.zx)
    weight.copy_(layer.weight(levels.to(step) * step))


def matrix_of(site: QuantSite) -> MatrixLayer | None:
    """Return the view of a weight site's layer as a matrix product, None where it is none."""
    weight = site.parameter
    return None if weight is None else MatrixLayer.of(site.module, weight.shape)


def in_order(prepared: geta.Prepared, batches: Sequence[Any]) -> list[QuantSite]:
    """Return the weight sites in the order in which their layers run first; those that do not run come last."""
    place: dict[nn.Module, int] = {}
    sites = [site for site in prepared.sites if site.kind == "weight"]

    def note(module: nn.Module, args: Any) -> None:
        place.setdefault(module, len(place))

    handles = [site.module.register_forward_pre_hook(note) for site in sites]
    try:
        with evaluating(prepared.model):
            call(prepared.model, batches[0])
    finally:
        for handle in handles:
            handle.remove()
    return sorted(sites, key=lambda site: place.get(site.module, len(place)))
