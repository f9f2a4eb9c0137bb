"""PARQ: piecewise-affine regularized quantization (Jin et al., ICML 2025, arXiv:2503.15748), through torchao.

Weights are pulled to the levels of a uniform grid by the proximal map of a piecewise-affine regularizer (AProx): the
slope anneals from the identity at ``warmup`` to hard rounding at ``anneal``, after which the method is the
straight-through estimator. ``torchao.prototype.parq.QuantOptimizer`` does all of it, around the run's own optimizer.

Differs from the library's defaults: the grid has a zero and 2^b - 1 levels (``UnifQuantizer`` with integer shift 1),
the only kind that the artifact stores exactly; the settings of the annealing are shares of the run. Weights alone are
quantized by the method; ``activation_bits`` quantizes inputs after training, at the range of least squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.post_training import Bits
from baselines.helpers.ranges import RangeRule, fit_ranges_
from baselines.matching import Matching
from baselines.schema import Bounds
from baselines.search import Space, declared
from baselines.torchao_rivals.library import LibraryOptimizer, demand_finished, torchao
from geta_core.quantize import quantizable_weights

HIGHEST = 15
"""The library leaves parameters of 16 bits alone."""


@dataclass(frozen=True, kw_only=True)
class Parq(Matching):
    """Weights that anneal to a grid by a proximal map."""

    PAPER: ClassVar[str] = "PARQ, arXiv:2503.15748 (ICML 2025), torchao.prototype.parq"
    CONTROLS: ClassVar[str] = "the bit width of weights"
    SEARCH: ClassVar[Space] = declared(__file__, "parq")

    weight_bits: Bits = 4
    """Bit width of every weight."""
    activation_bits: Bits | None = None
    """Bit width of every layer input, quantized after training; null leaves the inputs in floating point."""
    per_channel: bool = False
    """One grid per output channel of a weight instead of one per tensor (channels on the first axis)."""
    warmup: Annotated[float, Bounds(0, 1)] = 0.1
    """Share of the run of ordinary training."""
    anneal: Annotated[float, Bounds(0, 1, above=True)] = 0.8
    """Share of the run after which weights are rounded hard."""
    steepness: Annotated[float, Bounds(0, above=True)] = 10.0
    """Steepness of the annealing; the library's default."""
    period: Annotated[int, Bounds(1)] = 10
    """Steps between updates of the grids; the library's default."""

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Capture the model; the library needs nothing attached."""
        torchao("torchao.prototype.parq")
        config = geta.CompressionConfig(sparsity=0.0, weight_bits=None, activation_bits=None)
        return geta.prepare(model, example_inputs, config)

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the library's optimizer around the given class."""
        return ParqOptimizer(self, prepared, optimizer_class, total_steps, keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Give the quantizers the grids that the weights lie on."""
        optimizer = demand_finished(prepared)
        inputs = self.activation_bits
        config = geta.CompressionConfig(
            sparsity=0.0,
            weight_bits=(self.weight_bits, self.weight_bits),
            activation_bits=None if inputs is None else (inputs, inputs),
            per_channel=self.per_channel,
            learn_exponent=False,
        )
        training = prepared.model.training
        prepared.model.eval()
        result = geta.prepare(prepared.model, prepared.inputs, config, calibration=list(calibration))
        prepared.model.train(training)
        fit_ranges_(result, calibration, self.weight_bits, inputs, RangeRule("mse"))
        for site in result.sites:
            if site.kind == "weight" and site.parameter is not None:
                highest = optimizer.state[site.parameter]["quants"].amax(-1)
                site.quantizer.set_bits_(float(self.weight_bits))
                site.quantizer.set_range_(highest.reshape(site.quantizer.q_m.shape))
        return geta.finish(result)


class ParqOptimizer(LibraryOptimizer):
    """The optimizer of :class:`Parq`."""

    def __init__(
        self,
        method: Parq,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        total_steps: int,
        keywords: dict[str, Any],
    ) -> None:
        self.method = method
        # The library needs one ordinary step, so that the inner optimizer's state exists before its own.
        self.first = max(1, min(round(method.warmup * total_steps), total_steps - 2))
        self.last = max(self.first + 1, min(round(method.anneal * total_steps), total_steps - 1))
        weights = quantized_parameters(prepared.model)
        chosen = {id(parameter) for parameter in weights}
        rest = [p for p in prepared.model.parameters() if id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
        groups.append({"params": weights, "quant_bits": min(method.weight_bits, HIGHEST)})
        super().__init__(prepared, groups, inner, keywords, total_steps)

    @property
    def stage(self) -> str:
        """Stage of the next step."""
        return "warmup" if self._clock < self.first else "anneal" if self._clock < self.last else "hard"

    def build(self) -> Any:
        """Return the library's optimizer."""
        parq, quant = torchao("torchao.prototype.parq.optim"), torchao("torchao.prototype.parq.quant")
        method = self.method
        return parq.QuantOptimizer(
            self.inner,
            quant.UnifQuantizer(int_shift=1.0, zero_point=0.0),
            parq.ProxPARQ(anneal_start=self.first, anneal_end=self.last, steepness=method.steepness),
            warmup_steps=self.first,
            quant_period=method.period,
            quant_per_channel=method.per_channel,
        )


def quantized_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return every weight that the engine quantizes, each once."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name in quantizable_weights(module):
            weight: Tensor = getattr(module, name)
            assert isinstance(weight, nn.Parameter)
            found.setdefault(id(weight), weight)
    return list(found.values())
