"""QST-B: quantized sparse training (Park, Kim, Lee, ACM TECS 21(5), 2022, doi 10.1145/3524066; no arXiv version known).

Prunes and quantizes in one gradient-based training from scratch, both by the straight-through estimator: the layer sees
w^Q = d round(clip(m w) / d), and the gradient of w^Q is given to w unchanged, masked weights included, so that weights
return when they grow::

    m = 1 where |w| is among the (1 - s) N largest of all N weights, chosen anew after every step while s rises to
    ``weight_sparsity`` (cubic, arXiv:1710.01878)

The step d and the range follow the gradient (LSQ, arXiv:1902.08153).

Differs from the paper, or is not known to agree: only the abstract was at hand, so that the choice of the masks by
magnitude over the whole network, the ramp, the learned step and all defaults are ours, and what tells the variant B
from others is not known. Zeros are those of the mask alone (``baselines.helpers.masks``). GETA quotes it with
quantized weights; ``activation_bits`` is an extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

import geta_core as geta
from baselines.helpers.masks import largest_mask
from baselines.helpers.unstructured import Fraction, MaskedAtBits, MaskedOptimizer, fixed_widths, phases_of
from baselines.schema import Bounds
from baselines.search import Space, declared


@dataclass(frozen=True, kw_only=True)
class QstB(MaskedAtBits):
    """Unstructured sparsity and learned grids, trained together from scratch."""

    PAPER: ClassVar[str] = "Quantized Sparse Training, doi 10.1145/3524066 (ACM TECS 2022)"
    CONTROLS: ClassVar[str] = "unstructured weight sparsity and bit widths, both given"
    SEARCH: ClassVar[Space] = declared(__file__, "qst_b")

    weight_sparsity: Annotated[float, Bounds(0, 1, below=True)] = 0.5
    """Share of all quantized weights that are zero at the end."""
    warmup: Fraction = 0.1
    """Share of the run before weights are masked and quantized."""
    ramp: Fraction = 0.5
    """Share of the run in which the sparsity rises; then the masks stay."""

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with masks by magnitude."""
        return QstOptimizer(self, prepared, optimizer_class, total_steps, keywords)


class QstOptimizer(MaskedOptimizer):
    """The optimizer of :class:`QstB`."""

    def __init__(
        self,
        method: QstB,
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
        """Keep the largest weights of the whole network."""
        total = sum(weight.numel() for weight in self.weights)
        kept = total - int(self.method.weight_sparsity * share * total)
        for each, mask in zip(self.masks, largest_mask(torch._foreach_abs(self.weights), kept), strict=True):
            each.mask.copy_(mask)
