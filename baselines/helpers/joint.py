"""What joint methods with gates share: settings, and the optimizer that learns gates and bit widths under a penalty.

A method gives the penalty, a score for each group, the groups it would remove, and the bit widths it has learned; this
file adds the penalty's gradients, moves the quantizers, and at the end of the first stage fixes groups and whole bits,
at a relative BOPs where ``match_bops`` asks for one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.channels import gates_of
from baselines.helpers.grids import Grids
from baselines.helpers.reach import demand_reachable
from baselines.helpers.soft_cost import SoftCost
from baselines.helpers.stepping import HeldZeros, StagedOptimizer, share_of_steps
from baselines.helpers.targets import Plan, alive_after, nearest, removable
from baselines.matching import Targeted
from baselines.schema import Bounds
from geta_core.config import HIGHEST_BITS, LOWEST_BITS

Positive = Annotated[float, Bounds(0, above=True)]


@dataclass(frozen=True, kw_only=True)
class JointSettings(Targeted):
    """Settings that methods with gates have in common; without ``match_bops`` the weights in the loss decide."""

    weight_bits: tuple[int, int] = (2, 16)
    """Bounds of the weights' bit widths."""
    activation_bits: tuple[int, int] | None = (2, 16)
    """Bounds of the inputs' bit widths; null leaves the inputs in floating point."""
    lr_gates: Positive = 0.01
    """Learning rate of the gates (Adam)."""
    lr_quant: Positive = 1e-3
    """Learning rate of the quantizers' parameters, in the logarithm (Adam)."""
    learn: Annotated[float, Bounds(0, 1, above=True)] = 0.7
    """Share of the run in which gates and bits are learned; then they are fixed and the rest is trained on."""
    min_kept: Annotated[int, Bounds(1)] = 1
    """Fewest groups that are kept in each family."""

    def __post_init__(self) -> None:
        self.compression()

    def matched(self, model: nn.Module, example_inputs: Any) -> Self:
        """Return this method with ``match_bops`` as a number.

        Raises:
            ConfigError: when the bounds of groups and bit widths do not allow it.
        """
        if self.target_bops is not None:
            bounds = self.weight_bits, self.activation_bits
            demand_reachable(self.target_bops, model, example_inputs, *bounds, self.min_kept)
        return super().matched(model, example_inputs)

    def widths(self) -> tuple[int, ...] | None:
        """Return the only bit widths that are allowed; None allows every whole number in the bounds."""
        return None

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Return the bounds of the bit widths of each kind of site."""
        return {"weight": self.weight_bits, "input": self.activation_bits or self.weight_bits}

    def compression(self) -> geta.CompressionConfig:
        """Return the engine's configuration, checked."""
        return geta.CompressionConfig(
            sparsity=0.0,
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            initial_bits=HIGHEST_BITS,
            learn_exponent=False,
            min_kept=self.min_kept,
        )


def take_off_gates_(prepared: geta.Prepared) -> None:
    """Remove the gates from a model; a second call does nothing."""
    held = gates_of(prepared.model)
    if held is not None:
        held.detach_(prepared.model)


class GatedOptimizer(StagedOptimizer):
    """Learns gates and quantizers in the first stage, and what is left in the second.

    Args:
        settings: of the method.
        prepared: its gates attached.
        inner: torch.optim class of the weights.
        total_steps: of the run.
        keywords: arguments of ``inner``.
    """

    def __init__(
        self,
        settings: JointSettings,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        total_steps: int,
        keywords: Mapping[str, Any],
    ) -> None:
        self.settings, self.target = settings, settings.target_bops
        held = gates_of(prepared.model)
        assert held is not None, "the method's prepare attaches gates"
        self.gates = held
        self.leaves: list[nn.Parameter] = list(self.gates.parameters())
        self.cost = SoftCost(prepared, self.gates.alive.device)
        self.held = HeldZeros(prepared)
        self.grids = Grids(prepared, settings.ranges(), settings.lr_quant)
        self.bits: Tensor | None = None
        super().__init__(
            prepared,
            inner,
            keywords,
            learn_steps=share_of_steps(settings.learn, total_steps),
            total_steps=total_steps,
            lr_quant=settings.lr_quant,
            extra=[(self.leaves, settings.lr_gates)],
        )
        self.write()

    @abstractmethod
    def penalty(self) -> Tensor:
        """Return what is added to the loss, differentiable in ``leaves`` and ``grids.theta``."""

    @abstractmethod
    def score(self) -> Tensor:
        """Return how much each group matters, [groups]; the lowest go first."""

    @abstractmethod
    def redundant(self) -> Tensor:
        """Return which groups the method would remove, bool [groups]."""

    @abstractmethod
    def learned_bits(self) -> Tensor:
        """Return the bit widths of now, not always whole, [entries]."""

    def bits_in_training(self) -> Tensor | None:
        """Return whole bits that the quantizers have while they are learned, long [entries]; None leaves theta's."""
        return None

    def at_fix(self, bits: Tensor) -> None:
        """Do what the method needs when its bits are fixed."""

    def before(self) -> None:
        """Add the gradients of the penalty to those of the gates, and keep those of theta."""
        self._gradient = self.grids.gradient()
        if not self.learning:
            return
        with torch.enable_grad():
            found = torch.autograd.grad(self.penalty(), [*self.leaves, self.grids.theta], materialize_grads=True)
        for parameter, gradient in zip(self.leaves, found[:-1], strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._gradient = self._gradient + found[-1]

    def after(self) -> None:
        """Move the quantizers; what is removed stays zero."""
        gradient = self._gradient if self.learning else self.grids.tied(self._gradient)
        self.grids.step(gradient, self.param_groups[1]["lr"])
        self.write()
        self.held.apply_()

    def write(self) -> None:
        """Bring the quantizers up to date."""
        self.grids.write(self.bits if self.bits is not None else self.bits_in_training())

    def fix(self) -> None:
        """Remove groups, merge the gates and fix whole bits."""
        settings, score = self.settings, self.score().detach()
        order = removable(score, self.prepared.family, settings.min_kept)
        count = int(self.redundant().cpu()[order].sum())
        learned, widths = self.learned_bits().detach(), settings.widths()
        bits = self.bits_in_training()
        if bits is None:
            bits = nearest(learned, widths or range(LOWEST_BITS, HIGHEST_BITS + 1))
        if self.target is not None:
            choices = self.grids.choices(widths)
            plan = Plan(self.cost, order, choices, self.grids.average, self.grids.sizes, len(score))
            count, bits = plan.meet(bits, learned, count, self.target)
        self.gates.alive.copy_(alive_after(count, order, len(score)))
        self.gates.merge_()
        self.at_fix(bits)
        self.bits = bits
        self.write()
        self.held.set_(self.gates.alive)

    def fixed_bits(self) -> dict[str, Tensor]:
        """Return the whole bit widths by site."""
        return {} if self.bits is None else self.grids.by_site(self.bits)

    def own_state(self) -> dict[str, Any]:
        """Return the quantizers' logarithms, their moments, and the fixed bits."""
        return {"grids": self.grids.state(), "bits": self.bits}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take the state over; gates and masks follow from the model's state."""
        self.grids.load_state(state["grids"])
        self.bits = None if state["bits"] is None else state["bits"].to(self.grids.theta.device)
        self.gates.fixed = not self.learning
        if not self.learning:
            self.held.set_(self.gates.alive)
