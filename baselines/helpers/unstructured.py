"""What methods with unstructured sparsity share: settings, schedule, and the optimizer that keeps masks and grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.grids import Grids
from baselines.helpers.masks import MaskedQuantizer, first_step, masks_of, put_on_, refit_step, take_off_
from baselines.helpers.post_training import Bits
from baselines.helpers.stepping import StagedOptimizer
from baselines.matching import Matching
from baselines.schema import Bounds
from geta_core.config import HIGHEST_BITS

Positive = Annotated[float, Bounds(0, above=True)]
Fraction = Annotated[float, Bounds(0, 1)]
FIRST_ROUNDS = 10
"""Turns of the search for a grid when quantization begins."""


class Masked:
    """A method that attaches quantizers, and masks in front of those of the weights, and prunes no groups."""

    def attached(
        self,
        model: nn.Module,
        example_inputs: Any,
        calibration: Sequence[Any],
        weights: tuple[int, int],
        inputs: int | None,
    ) -> geta.Prepared:
        """Attach them; they are off at first.

        Args:
            model: the float model.
            example_inputs: as ``geta.prepare`` takes them.
            calibration: batches formed like them.
            weights: bounds of the weights' bit widths.
            inputs: bit width of layer inputs; None leaves them in floating point.
        """
        config = geta.CompressionConfig(
            sparsity=0.0,
            weight_bits=weights,
            activation_bits=None if inputs is None else (inputs, inputs),
            initial_bits=HIGHEST_BITS,
            learn_exponent=False,
        )
        prepared = geta.prepare(model, example_inputs, config, calibration=list(calibration))
        put_on_(prepared)
        return prepared

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Write the masked weights down and fix the bit widths."""
        take_off_(prepared)
        return geta.finish(prepared)


@dataclass(frozen=True, kw_only=True)
class MaskedAtBits(Masked, Matching):
    """A method with masks at given bit widths."""

    weight_bits: Bits = 4
    """Bit width of every weight."""
    activation_bits: Bits | None = None
    """Bit width of every layer input; null leaves the inputs in floating point."""
    lr_quant: Positive = 1e-3
    """Learning rate of the ranges, in the logarithm (Adam)."""

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Attach quantizers, and masks in front of those of the weights."""
        both = (self.weight_bits, self.weight_bits)
        return self.attached(model, example_inputs, calibration, both, self.activation_bits)


def cubic(done: float) -> float:
    """Return the share of the final sparsity after a share of the ramp (arXiv:1710.01878, Eq. 1)."""
    return 1 - (1 - min(max(done, 0.0), 1.0)) ** 3


@dataclass(frozen=True)
class Phases:
    """Steps at which weights begin to be masked and quantized, and at which the masks are final."""

    begin: int
    end: int

    def share(self, clock: int) -> float:
        """Return the share of the final sparsity that holds after ``clock`` steps."""
        return 1.0 if clock >= self.end else cubic((clock - self.begin) / (self.end - self.begin))


class MaskedOptimizer(StagedOptimizer):
    """Trains weights behind masks and quantizers.

    Args:
        prepared: its masks attached.
        inner: torch.optim class of the weights.
        keywords: its arguments.
        widths: whole bit width of each kind of site; None while they are not decided.
        phases: when masks and quantization of weights begin, and when the masks are final.
        total_steps: of the run.
        lr_quant: learning rate of the ranges, in the logarithm (Adam).
    """

    def __init__(
        self,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        keywords: Mapping[str, Any],
        *,
        widths: Mapping[str, int] | None,
        phases: Phases,
        total_steps: int,
        lr_quant: float,
    ) -> None:
        self.phases = phases
        self.masks: list[MaskedQuantizer] = masks_of(prepared)
        weights = [site for site in prepared.sites if site.kind == "weight"]
        self.weights: list[Tensor] = [site.parameter.detach() for site in weights if site.parameter is not None]
        config = prepared.config
        ranges = {"weight": config.weight_bits or (2, 16), "input": config.activation_bits or (2, 16)}
        self.grids = Grids(prepared, ranges, lr_quant)
        self.entry = self.grids.entries_of([site.quantizer for site in weights])
        self.set_bits(None if widths is None else self.grids.constant(widths))
        super().__init__(prepared, inner, keywords, learn_steps=phases.end, total_steps=total_steps, lr_quant=lr_quant)
        self.write()
        self._follow()

    def set_bits(self, bits: Tensor | None) -> None:
        """Fix the bit widths, long [entries]; ``widths`` then lists those of the weights."""
        self.bits = bits
        every = [] if bits is None else bits.tolist()
        self.widths: list[int] = [] if bits is None else [every[entry] for entry in self.entry]

    def set_steps(self, steps: Sequence[Tensor]) -> None:
        """Give the weights' grids these steps, at their bit widths."""
        ranges = [step * (2 ** (width - 1) - 1) for step, width in zip(steps, self.widths, strict=True)]
        with torch.no_grad():
            self.grids.theta[1, self.entry] = torch.stack(ranges).to(self.grids.theta).log()

    def fit_grids(self, rounds: int, anew: bool = False) -> None:
        """Move the weights' grids to least squared error on what is kept."""
        steps = []
        for weight, each, width in zip(self.weights, self.masks, self.widths, strict=True):
            magnitude = weight.abs()
            start = first_step(magnitude, width) if anew else each.inner.d.detach()
            steps.append(refit_step(magnitude, each.mask, start, width, rounds))
        self.set_steps(steps)

    def before(self) -> None:
        """Keep the gradients of the quantizers."""
        self._gradient = self.grids.gradient()

    def after(self) -> None:
        """Move ranges, masks and grids."""
        self.grids.step(self.grids.tied(self._gradient), self.param_groups[1]["lr"])
        self.write()
        if self._clock + 1 >= self.phases.begin and self.learning:
            self.choose_masks(self.phases.share(self._clock + 1))
        if self._clock + 1 == self.phases.begin and self.bits is not None:
            self.fit_grids(FIRST_ROUNDS, anew=True)
            self.write()
        self.always()
        self._follow(1)

    def choose_masks(self, share: float) -> None:
        """Choose the masks at a share of the final sparsity."""

    def always(self) -> None:
        """Do what the method does after every step."""

    def write(self) -> None:
        """Bring the quantizers up to date."""
        self.grids.write(self.bits)

    def _follow(self, ahead: int = 0) -> None:
        """Switch masks and quantizers on where the schedule says so."""
        for each in self.masks:
            each.masking = each.quantizing = self._clock + ahead >= self.phases.begin

    def fixed_bits(self) -> dict[str, Tensor]:
        """Return the whole bit widths by site."""
        return {} if self.bits is None else self.grids.by_site(self.bits)

    def own_state(self) -> dict[str, Any]:
        """Return the quantizers' logarithms, their moments, and the bits; masks are in the model's state."""
        return {"grids": self.grids.state(), "bits": self.bits}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take the state over."""
        self.grids.load_state(state["grids"])
        self.set_bits(None if state["bits"] is None else state["bits"].to(self.grids.theta.device))
        self._follow()


def fixed_widths(weights: int, inputs: int | None) -> dict[str, int]:
    """Return one bit width for each kind of site."""
    return {"weight": weights, "input": inputs or weights}


def phases_of(warmup: float, ramp: float, total_steps: int) -> Phases:
    """Return the phases for shares of a run; at least one step comes before each."""
    begin = max(1, min(round(warmup * total_steps), total_steps))
    return Phases(begin, max(begin, min(round((warmup + ramp) * total_steps), total_steps)))
