"""CLIP-Q: in-parallel pruning and quantization (Tung and Mori, CVPR 2018; no arXiv version; extended in TPAMI 2020).

Three steps after every minibatch, on full-precision weights that are kept and trained:

* clipping: in each layer the share p of the positive weights nearest zero, and of the negative ones, becomes zero (the
  scalars c+ and c-);
* partitioning: the rest is divided into 2^b - 2 intervals;
* quantizing: each interval has one value, made from the full-precision weights in it.

The gradient at the quantized weights updates the full-precision ones, so that a clipped weight can come back.

Differs from the paper: intervals lie on one symmetric uniform grid per layer (the artifact stores whole numbers times
a step), whose step is that of least squared error for the weights of now, where the paper takes each interval's mean;
p and b are the same in all layers, where the paper finds them for each layer by Bayesian optimization (the declared
search space is over p and b); training begins with ``warmup`` in the place of a trained network, and p rises over
``ramp``; in the rest of the run what is clipped stays. ``activation_bits`` is an extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

import geta_core as geta
from baselines.helpers.unstructured import Fraction, MaskedAtBits, MaskedOptimizer, fixed_widths, phases_of
from baselines.schema import Bounds
from baselines.search import Space, declared


def clip_mask(weight: Tensor, share: float) -> Tensor:
    """Return what stays of a layer: not the ``share`` of its positive, nor of its negative, weights nearest zero.

    Exactly int(share x count) weights of each sign go; zeros count as neither and always go.
    """
    flat = weight.detach().reshape(-1)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    places = torch.arange(flat.numel(), device=flat.device)
    for side in (flat > 0, flat < 0):
        order = torch.where(side, flat.abs(), torch.inf).argsort(stable=True)
        rank = torch.empty_like(places).scatter(0, order, places)
        # 1e-6 against products such as 0.3 x 10 that fall just below a whole number.
        gone = (side.sum() * share + 1e-6).floor()
        kept |= side & (rank >= gone)
    return kept.view_as(weight)


@dataclass(frozen=True, kw_only=True)
class ClipQ(MaskedAtBits):
    """Clipping and quantization of the present weights after every step."""

    PAPER: ClassVar[str] = "CLIP-Q (Tung and Mori, CVPR 2018, pp. 7873-7882)"
    CONTROLS: ClassVar[str] = "unstructured weight sparsity and bit width of every layer, both given"
    SEARCH: ClassVar[Space] = declared(__file__, "clip_q")

    clip: Annotated[float, Bounds(0, 1, below=True)] = 0.5
    """p, the share of each layer's weights of either sign that become zero."""
    warmup: Fraction = 0.3
    """Share of the run before weights are clipped and quantized."""
    ramp: Fraction = 0.4
    """Share of the run in which p rises to ``clip``; then what is clipped stays."""

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with clipping and quantization after every step."""
        return ClipOptimizer(self, prepared, optimizer_class, total_steps, keywords)


class ClipOptimizer(MaskedOptimizer):
    """The optimizer of :class:`ClipQ`."""

    def __init__(
        self,
        method: ClipQ,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        total_steps: int,
        keywords: Mapping[str, Any],
    ) -> None:
        self.method = method
        super().__init__(
            prepared,
            inner,
            keywords,
            widths=fixed_widths(method.weight_bits, method.activation_bits),
            phases=phases_of(method.warmup, method.ramp, total_steps),
            total_steps=total_steps,
            lr_quant=method.lr_quant,
        )

    def choose_masks(self, share: float) -> None:
        """Clip each layer."""
        for each, weight in zip(self.masks, self.weights, strict=True):
            each.mask.copy_(clip_mask(weight, self.method.clip * share))

    def always(self) -> None:
        """Partition and quantize what is kept."""
        if self._clock + 1 >= self.phases.begin:
            self.fit_grids(1)
            self.write()
