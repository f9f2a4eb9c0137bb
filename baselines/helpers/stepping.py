"""An optimizer around a torch.optim class: what a method adds before and after the step of the weights.

The training loop knows ``loss.backward()`` and ``step()`` alone. A method's regularizer therefore adds its gradients
inside ``step``, after a gradient scaler has unscaled those of the loss, and whatever is projected, pruned or fixed
happens there too. The run has two stages: ``learn``, in which a method decides what to remove and how many bits to
give, and ``tune``, in which that is fixed and the rest is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.clocked import ClockedOptimizer, defaults_of
from geta_core.errors import ScheduleError


def share_of_steps(share: float, total_steps: int) -> int:
    """Return a share of a run in whole steps, at least one."""
    return max(1, min(round(share * total_steps), total_steps))


class StagedOptimizer(ClockedOptimizer):
    """Base of the joint methods' optimizers; ``step`` never waits for the device outside :meth:`fix`.

    Parameter group 0 holds the weights, stepped by ``inner``. Group 1 holds the quantizers' parameters (there may be
    none); the subclass steps them. Further groups are stepped by Adam. All obey learning rate schedulers.

    Args:
        prepared: bound to this optimizer.
        inner: torch.optim class of the weights.
        keywords: its arguments.
        learn_steps: length of the first stage.
        total_steps: of the run.
        lr_quant: learning rate of group 1.
        extra: lists of parameters with their learning rates, one further group each.
    """

    def __init__(
        self,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        keywords: Mapping[str, Any],
        *,
        learn_steps: int,
        total_steps: int,
        lr_quant: float,
        extra: Sequence[tuple[list[nn.Parameter], float]] = (),
    ) -> None:
        self.prepared = prepared
        self.learn_steps, self.total_steps = learn_steps, total_steps
        self._clock = 0
        quantizers = {id(p): p for site in prepared.sites for p in site.quantizer.parameters()}
        own = {*quantizers, *(id(p) for parameters, _ in extra for p in parameters)}
        weights = [p for p in prepared.model.parameters() if id(p) not in own]
        adam = defaults_of(torch.optim.Adam)
        defaults = defaults_of(inner, **keywords)
        groups: list[dict[str, Any]] = [{"params": weights}]
        groups += [{"params": list(quantizers.values()), "lr": lr_quant, "weight_decay": 0.0}]
        groups += [{**adam, "params": parameters, "lr": rate} for parameters, rate in extra]
        super().__init__(groups, defaults)
        self.inner = inner(self.param_groups[:1], **keywords)
        self.adam = torch.optim.Adam(self.param_groups[2:]) if extra else None
        self._share()
        prepared.bind(self)

    def _share(self) -> None:
        """Point the inner optimizers to this object's groups and state."""
        self.inner.param_groups, self.inner.state = self.param_groups[:1], self.state
        if self.adam is not None:
            self.adam.param_groups, self.adam.state = self.param_groups[2:], self.state

    @property
    def learning(self) -> bool:
        """Whether the next step belongs to the first stage."""
        return self._clock < self.learn_steps

    @property
    def stage(self) -> str:
        """Stage of the next step."""
        return "learn" if self.learning else "tune"

    def _advance(self) -> None:
        """Step the weights between what the method adds before and after."""
        self.before()
        self.inner.step()
        if self.adam is not None and self.learning:
            self.adam.step()
        self.after()

    def _advanced(self) -> None:
        """Fix what was learned at the end of the first stage."""
        if self._clock == self.learn_steps:
            self.fix()

    def before(self) -> None:
        """Add to the gradients."""

    def after(self) -> None:
        """Move quantizers, project, keep zero what is zero."""

    def fix(self) -> None:
        """End the first stage: decide what is removed and how many bits there are."""

    def own_state(self) -> dict[str, Any]:
        """Return the method's state besides clock, parameters and the inner optimizers' state."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`own_state` returned; model and clock are restored already."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: tensors and plain values only."""
        plan = {"learn_steps": self.learn_steps, "total_steps": self.total_steps}
        return {**super().state_dict(), "method": {**plan, "clock": self._clock, "own": self.own_state()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; the trajectory goes on bit for bit.

        Raises:
            ScheduleError: the state is of another optimizer or of a run with other stages.
        """
        own = state_dict.get("method")
        if own is None:
            raise ScheduleError(f"the state must come from {type(self).__name__}.state_dict(), but it has no 'method'")
        if (own["learn_steps"], own["total_steps"]) != (self.learn_steps, self.total_steps):
            raise ScheduleError(
                f"the state is of a run with {own['learn_steps']} of {own['total_steps']} steps in its first stage, "
                f"but this one has {self.learn_steps} of {self.total_steps}; resume with the settings it was saved with"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "method"})
        self._clock = own["clock"]
        self._share()
        self.load_own_state(own["own"])


class HeldZeros:
    """Keeps removed groups at zero: masks of the PRODUCE members, multiplied in after every step."""

    def __init__(self, prepared: geta.Prepared) -> None:
        self._prepared = prepared
        self._parameters: list[Tensor] = []
        self._masks: list[Tensor] = []

    @torch.no_grad()
    def set_(self, alive: Tensor) -> None:
        """Hold the groups that are not alive; ``alive`` is bool [groups]."""
        self._parameters, self._masks = [], []
        for slot in self._prepared.slots:
            group = slot.group.to(alive.device)
            rows = (group < 0) | alive[group.clamp(min=0)]
            shape = [-1 if dim == slot.dim else 1 for dim in range(slot.parameter.dim())]
            self._parameters.append(slot.parameter.detach())
            self._masks.append(rows.to(slot.parameter.dtype).view(shape))
        self.apply_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Multiply the masks in; does nothing before :meth:`set_`."""
        if self._parameters:
            torch._foreach_mul_(self._parameters, self._masks)
