"""ANNC: automatic neural network compression by sparsity-quantization joint learning (Yang et al., CVPR 2020).

Paper arXiv:1910.05897. Solves, by ADMM with the duals U in scaled form::

    min L(W)   subject to   W = V,   sum_layers b_i |V_i|_0 <= S,   V_i on a grid of b_i bits

    W <- SGD on L(W) + rho / 2 |W - V + U|^2   (a period of steps)
    (V, b) <- the nearest point to W + U within the budget
    U <- U + W - V

The middle step chooses, for a price lambda on every stored bit, in each layer the width with the least sum over weights
of min(w^2, (w - q_b(w))^2 + lambda b), and for each weight whether to keep it; the least lambda within the budget gives
a minimiser over widths and supports together (for the given grids, among all points of no greater size). Grids are
refitted to what is kept. At the end of the first stage widths and supports are fixed and the rest is trained on with
quantized weights.

Differs from the paper: there the step is split in two (supports for given widths as a knapsack, widths for given
supports as a multiple-choice knapsack, both by greedy search) and one-bit layers are allowed; a layer's grid is
symmetric with a zero of its own, 2^b - 2 values for the kept weights; whether rho and period agree with the released
code's settings for CIFAR-10 is not known (rho 0.05 is its value for MNIST). The budget counts b bits per kept weight
and no indices, as the paper does. ``match_bops`` (ours) moves the widths when they are fixed, within the same budget;
quantized inputs (ours as well) become as much narrower than ``activation_bits`` as the target needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.masks import first_step, kept_levels, refit_step
from baselines.helpers.post_training import Bits
from baselines.helpers.reach import reachable_inputs
from baselines.helpers.soft_cost import SoftCost
from baselines.helpers.targets import Plan
from baselines.helpers.unstructured import Fraction, Masked, MaskedOptimizer, Phases, Positive
from baselines.matching import Targeted
from baselines.schema import Bounds
from baselines.search import Space, declared
from geta_core.accounting import FLOAT_BITS
from geta_core.config import LOWEST_BITS

HALVINGS = 40
"""Steps of the search for the price of a bit."""
REFITS = 2
"""Times that grids are refitted to what is kept, in each projection."""
Grid = dict[int, Tensor]
"""The step of a layer's grid at each width it may have."""


class Choice(NamedTuple):
    """Widths, supports and steps of all layers."""

    widths: list[int]
    masks: list[Tensor]
    steps: list[Tensor]

    def size(self) -> Tensor:
        """Stored bits, 0-dim."""
        return torch.stack([mask.sum() * width for mask, width in zip(self.masks, self.widths, strict=True)]).sum()

    def values(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return V: what is kept, on its grid."""
        parts = zip(weights, self.masks, self.steps, self.widths, strict=True)
        return [torch.where(mask, quantized(w, step, width), torch.zeros_like(w)) for w, mask, step, width in parts]


def quantized(weight: Tensor, step: Tensor, width: int) -> Tensor:
    """Return the nearest values on the grid other than zero."""
    return torch.copysign(kept_levels(weight.abs(), step, width) * step, weight)


def gains(weight: Tensor, step: Tensor, width: int) -> Tensor:
    """Return by how much the squared error falls when a weight is kept on the grid instead of being zero."""
    return weight.square() - (weight - quantized(weight, step, width)).square()


def best_within(weights: Sequence[Tensor], grids: Sequence[Grid], budget: float) -> Choice:
    """Return widths and supports of least squared error among all choices of at most ``budget`` stored bits.

    A minimiser for every budget that a price reaches exactly; otherwise the remaining bits are filled in the order of
    gain per bit, and the error exceeds the least by at most one weight's gain (widths as chosen).

    Args:
        weights: of the layers.
        grids: of the layers.
        budget: stored bits.
    """
    pairs = zip(weights, grids, strict=True)
    gained = [{width: gains(w, step, width) for width, step in grid.items()} for w, grid in pairs]

    def widths_at(price: float) -> list[int]:
        # The cost of a layer is a constant less what its kept weights gain beyond their price.
        worth = [{b: float((g - price * b).clamp(min=0).double().sum()) for b, g in each.items()} for each in gained]
        return [max(each, key=lambda b: (each[b], -b)) for each in worth]

    def size_at(price: float, widths: Sequence[int]) -> int:
        return sum(int((each[b] > price * b).sum()) * b for each, b in zip(gained, widths, strict=True))

    low, high = 0.0, max(float(g.max()) / b for each in gained for b, g in each.items()) + 1e-12
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if size_at(middle, widths_at(middle)) <= budget:
            high = middle
        else:
            low = middle
    widths = widths_at(high)
    return Choice(widths, support(gained, widths, budget), [grid[b] for grid, b in zip(grids, widths, strict=True)])


def support(gained: Sequence[Mapping[int, Tensor]], widths: Sequence[int], budget: float) -> list[Tensor]:
    """Return which weights are kept for given widths: by gain per bit, while the budget lasts."""
    chosen = [each[b] for each, b in zip(gained, widths, strict=True)]
    ratio = torch.cat([(g / b).reshape(-1) for g, b in zip(chosen, widths, strict=True)])
    each = [torch.full((g.numel(),), b, dtype=torch.long) for g, b in zip(chosen, widths, strict=True)]
    order = torch.sort(ratio, descending=True, stable=True).indices
    total = torch.cat(each).to(ratio.device)[order].cumsum(0)
    kept = torch.zeros_like(ratio, dtype=torch.bool)
    kept[order] = (total <= budget) & (ratio[order] > 0)
    return [part.view_as(g) for part, g in zip(torch.split(kept, [g.numel() for g in chosen]), chosen, strict=True)]


@torch.no_grad()
def project(weights: Sequence[Tensor], candidates: Sequence[Sequence[int]], budget: float) -> Choice:
    """Return the nearest point within the budget, grids fitted to what is kept by turns.

    Args:
        weights: of the layers.
        candidates: widths that each layer may have.
        budget: stored bits.
    """
    every = [torch.ones_like(w, dtype=torch.bool) for w in weights]
    grids = [_fitted(w, mask, widths) for w, mask, widths in zip(weights, every, candidates, strict=True)]
    choice = best_within(weights, grids, budget)
    for _ in range(REFITS):
        grids = [_fitted(w, mask, widths) for w, mask, widths in zip(weights, choice.masks, candidates, strict=True)]
        choice = best_within(weights, grids, budget)
    return choice


def _fitted(weight: Tensor, mask: Tensor, widths: Sequence[int]) -> Grid:
    magnitude = weight.abs()
    return {b: refit_step(magnitude, mask, first_step(magnitude, b), b, rounds=4) for b in widths}


@dataclass(frozen=True, kw_only=True)
class Annc(Masked, Targeted):
    """Sparsity and bit widths of every layer under one budget of bytes."""

    PAPER: ClassVar[str] = "ANNC, arXiv:1910.05897 (CVPR 2020)"
    CONTROLS: ClassVar[str] = "unstructured sparsity and mixed bit widths, chosen under a size budget"
    SEARCH: ClassVar[Space] = declared(__file__, "annc")

    size_budget: Annotated[float, Bounds(0, 1, above=True)] = 0.06
    """Bits of the kept weights (no indices) over 32 bits for every weight."""
    weight_bits: tuple[int, int] = (2, 8)
    """Bounds of the widths that a layer may get."""
    activation_bits: Bits | None = None
    """Bit width of every layer input; null leaves the inputs in floating point, as the paper does."""
    rho: Positive = 0.05
    """Weight of the distance between W and V."""
    period: Annotated[float, Bounds(0, 1, above=True)] = 0.02
    """Steps between projections, as a share of the run."""
    warmup: Fraction = 0.1
    """Share of the run before the first projection."""
    learn: Annotated[float, Bounds(0, 1, above=True)] = 0.7
    """Share of the run after which widths and supports are fixed."""
    lr_quant: Positive = 1e-3
    """Learning rate of the ranges once they are fixed, in the logarithm (Adam)."""

    def matched(self, model: nn.Module, example_inputs: Any) -> Self:
        """Return this method with ``match_bops`` as a number, and inputs no wider than the target allows.

        Raises:
            ConfigError: when the bounds of the bit widths do not allow it.
        """
        target, inputs = self.target_bops, self.activation_bits
        if target is None:
            return self
        choices = [None] if inputs is None else [(width, width) for width in range(inputs, LOWEST_BITS - 1, -1)]
        found = reachable_inputs(target, model, example_inputs, self.weight_bits, choices, None)
        return replace(self, match_bops=target, activation_bits=None if found is None else found[0])

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Attach quantizers, and masks in front of those of the weights; both are off at first."""
        return self.attached(model, example_inputs, calibration, self.weight_bits, self.activation_bits)

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the given class with the gradient of the distance, and projections."""
        return AnncOptimizer(self, prepared, optimizer_class, total_steps, keywords)


class AnncOptimizer(MaskedOptimizer):
    """The optimizer of :class:`Annc`."""

    def __init__(
        self,
        method: Annc,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        total_steps: int,
        keywords: Mapping[str, Any],
    ) -> None:
        self.method = method
        end = max(1, min(round(method.learn * total_steps), total_steps))
        self.first = min(round(method.warmup * total_steps), end)
        self.period = max(1, round(method.period * total_steps))
        self.cost = SoftCost(prepared, next(prepared.model.parameters()).device)
        super().__init__(
            prepared,
            inner,
            keywords,
            widths=None,
            phases=Phases(end, end),
            total_steps=total_steps,
            lr_quant=method.lr_quant,
        )
        self.parameters = [site.parameter for site in prepared.sites if site.kind == "weight"]
        elements = sum(weight.numel() for weight in self.weights)
        self.budget = method.size_budget * FLOAT_BITS * elements
        candidates = range(method.weight_bits[0], method.weight_bits[1] + 1)
        self.candidates: list[Sequence[int]] = [candidates] * len(self.weights)
        self.copies = [torch.zeros_like(weight) for weight in self.weights]
        self.duals = [torch.zeros_like(weight) for weight in self.weights]

    @property
    def constrained(self) -> bool:
        """Whether the distance to V counts in the next step."""
        return self.learning and self._clock > self.first

    def residual(self) -> Tensor:
        """Return |W - V| / |W| over all layers, 0-dim."""
        apart = torch.stack(torch._foreach_norm(torch._foreach_sub(self.weights, self.copies))).norm()
        share: Tensor = apart / torch.stack(torch._foreach_norm(self.weights)).norm()
        return share

    def before(self) -> None:
        """Add rho (W - V + U) to the gradients of the weights."""
        super().before()
        if not self.constrained:
            return
        distance = torch._foreach_add(torch._foreach_sub(self.weights, self.copies), self.duals)
        for parameter, each in zip(self.parameters, distance, strict=True):
            if parameter is not None and parameter.grad is not None:
                parameter.grad = parameter.grad + self.method.rho * each

    def write(self) -> None:
        """Bring the quantizers up to date; those of the weights do nothing while their widths are open."""
        inputs = self.method.activation_bits or self.method.weight_bits[1]
        undecided = {"weight": self.method.weight_bits[1], "input": inputs}
        self.grids.write(self.grids.constant(undecided) if self.bits is None else self.bits)

    def always(self) -> None:
        """Project, and move the duals, at the end of each period."""
        done = self._clock + 1
        if self.learning and done > self.first and (done - self.first - 1) % self.period == 0:
            target = torch._foreach_add(self.weights, self.duals)
            choice = project(target, self.candidates, self.budget)
            self.copies = choice.values(target)
            torch._foreach_add_(self.duals, torch._foreach_sub(self.weights, self.copies))

    def choose_masks(self, share: float) -> None:
        """Fix widths and supports at the end of the first stage, the only time that this is called."""
        choice = project(self.weights, self.candidates, self.budget)
        inputs = self.method.activation_bits or self.method.weight_bits[1]
        bits = self.grids.constant({"weight": self.method.weight_bits[0], "input": inputs})
        bits[self.entry] = torch.tensor(choice.widths, device=bits.device)
        target = self.method.target_bops
        if target is not None:
            sizes, choices = self.grids.sizes, self.grids.choices(None)
            plan = Plan(self.cost, torch.zeros(0, dtype=torch.long), choices, self.grids.average, sizes, self._groups())
            _, bits = plan.meet(bits, bits.float(), 0, target)
            choice = project(self.weights, [(int(bits[entry]),) for entry in self.entry], self.budget)
        self.set_bits(bits)
        self.set_steps(choice.steps)
        for each, mask in zip(self.masks, choice.masks, strict=True):
            each.mask.copy_(mask)
        self.write()

    def _groups(self) -> int:
        return self.prepared.num_prunable

    def own_state(self) -> dict[str, Any]:
        """Return V and U besides what every masked method has."""
        return {**super().own_state(), "copies": self.copies, "duals": self.duals}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take the state over."""
        super().load_own_state(state)
        for name in ("copies", "duals"):
            pairs = zip(state[name], self.weights, strict=True)
            setattr(self, name, [value.to(weight).clone() for value, weight in pairs])
