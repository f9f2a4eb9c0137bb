"""QASSO with one of its rules replaced, so that an ablation can tell what the rule is worth."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from geta_core.errors import ConfigError
from geta_core.qasso.joint import Products
from geta_core.qasso.optimizer import QASSO, Grid, PreparedModel

Forgetting = Literal["rule", "uniform"]
StepRule = Literal["rule", "gradient", "fixed"]
FORGETTING: tuple[Forgetting, ...] = ("rule", "uniform")
STEP_RULES: tuple[StepRule, ...] = ("rule", "gradient", "fixed")


class VariedQASSO(QASSO):
    """QASSO whose joint stage may forget, or set the step sizes, in another way than arXiv:2502.16638 has it.

    The guarantees are QASSO's, but for the descent direction, which the paper's two rules give together.

    Args:
        prepared: as for QASSO.
        inner: as for QASSO.
        forgetting: ``rule``, the paper's gamma; ``uniform``, 1 / (steps left in the period) whatever the gradient says
            (the schedule of HESSO, arXiv:2409.09085).
        step_rule: ``rule``, the paper's d; ``gradient``, d follows its gradient and the projection as it does in the
            projection stage; ``fixed``, bit widths are rounded at the start of the joint stage and stay.
        keywords: the other arguments of QASSO.

    Raises:
        ConfigError: an unknown rule.
    """

    def __init__(
        self,
        prepared: PreparedModel,
        inner: type[torch.optim.Optimizer],
        *,
        forgetting: Forgetting = "rule",
        step_rule: StepRule = "rule",
        **keywords: Any,
    ) -> None:
        pairs = (("forgetting", forgetting, FORGETTING), ("step_rule", step_rule, STEP_RULES))
        faults = [
            f"{name} must be one of {', '.join(known)}, but got {value!r}"
            for name, value, known in pairs
            if value not in known
        ]
        if faults:
            raise ConfigError(faults)
        self.forgetting, self.step_rule = forgetting, step_rule
        super().__init__(prepared, inner, **keywords)
        if step_rule == "fixed":
            self._fixing = ("joint", "cooldown")

    def _rate(self, products: Products, uniform: float) -> Tensor:
        if self.forgetting == "rule":
            return super()._rate(products, uniform)
        return torch.full_like(products.cc, uniform).masked_fill(products.cc == 0, 0.0)

    def _learn_steps(self, products: Products, gamma: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        if self.step_rule != "rule":
            return gamma, grid
        slower, learned = super()._learn_steps(products, gamma, grid)
        return (slower if self.forgetting == "rule" else gamma), learned

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "forgetting": self.forgetting, "step_rule": self.step_rule}
