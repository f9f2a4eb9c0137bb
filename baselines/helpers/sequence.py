"""One optimizer for methods that do one thing after the other: train, prune, quantize, in stages of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import geta_core as geta
from baselines.helpers.lsq import LearnedSteps
from baselines.helpers.pruner import GroupPruner
from geta_core.clocked import ClockedOptimizer, defaults_of

OWN = "sequence"


class SequenceOptimizer(ClockedOptimizer):
    """A torch.optim class whose steps are followed by those of a pruner and of learned step sizes.

    Parameter group 0 holds the model's parameters, group 1 (where there are quantizers) the step sizes, without weight
    decay. Groups and state are shared with the inner optimizer.

    Args:
        prepared: a prepared model.
        inner: class of the optimizer that takes the steps.
        stages: name and length in steps of each stage, for the record and for ``stage``.
        pruner: removes groups.
        steps: learns the step sizes of the quantizers.
        lr_quant: learning rate of the step sizes; None: that of the weights.
        keywords: arguments of ``inner``, among them ``lr``.
    """

    def __init__(
        self,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        *,
        stages: Sequence[tuple[str, int]],
        pruner: GroupPruner | None = None,
        steps: LearnedSteps | None = None,
        lr_quant: float | None = None,
        **keywords: Any,
    ) -> None:
        self._stages, self._pruner, self._steps, self._clock = tuple(stages), pruner, steps, 0
        self.total_steps = sum(length for _, length in self._stages)
        defaults = defaults_of(inner, **keywords)
        quantizers = {id(p) for site in prepared.sites for p in site.quantizer.parameters()}
        groups: list[dict[str, Any]] = [{"params": [p for p in prepared.model.parameters() if id(p) not in quantizers]}]
        if steps is not None:
            rate = defaults["lr"] if lr_quant is None else lr_quant
            groups.append({"params": steps.parameters(), "lr": rate, "weight_decay": 0})
        super().__init__(groups, defaults)
        self.inner = inner(self.param_groups, **keywords)
        self._share()
        prepared.bind(self)

    def _share(self) -> None:
        self.inner.param_groups, self.inner.state = self.param_groups, self.state

    @property
    def stage(self) -> str:
        """Stage of the next step; past the end it is the last."""
        left = self._clock
        for name, length in self._stages:
            if left < length:
                return name
            left -= length
        return next((name for name, length in reversed(self._stages) if length), "train")

    def _advance(self) -> None:
        """Step the weights, then do what the present stage adds."""
        parts = [part for part in (self._pruner, self._steps) if part is not None]
        for part in parts:
            part.before_step(self._clock)
        self.inner.step()
        for part in parts:
            part.after_step(self._clock)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state and that of the parts: tensors, numbers and strings only."""
        state = super().state_dict()
        state[OWN] = {
            "clock": self._clock,
            "stages": [list(stage) for stage in self._stages],
            "pruner": None if self._pruner is None else self._pruner.state_dict(),
            "steps": None if self._steps is None else self._steps.state_dict(),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state from :meth:`state_dict`; the trajectory goes on bit for bit.

        Raises:
            ScheduleError: the state is of another optimizer or other stages; nothing has been changed then.
        """
        own = state_dict.get(OWN)
        stages = [list(stage) for stage in self._stages]
        if own is None or own["stages"] != stages:
            found = None if own is None else own["stages"]
            raise geta.ScheduleError(f"the state belongs to another run: its stages are {found}, and {stages} here")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != OWN})
        self._share()
        self._clock = own["clock"]
        for part, state in ((self._pruner, own["pruner"]), (self._steps, own["steps"])):
            if part is not None:
                part.load_state_dict(state)


def require_finished(prepared: geta.Prepared) -> None:
    """Refuse what must come after the last step while there are steps left.

    Raises:
        ScheduleError: when the bound optimizer has not finished.
    """
    if prepared.optimizer is not None and not prepared.optimizer.finished:
        raise geta.ScheduleError(
            "finish: the stages are not complete, so sparsity and bits are not what was asked for; train to their end"
        )
