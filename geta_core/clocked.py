"""What optimizers around other optimizers have in common: a clock, and a closure that is called once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class ClockedOptimizer(torch.optim.Optimizer, ABC):
    """Counts its steps, so that a prepared model it is bound to knows whether the run is over.

    Attributes:
        total_steps: of the run.
    """

    total_steps: int
    _clock: int

    @property
    def clock(self) -> int:
        """Number of steps done."""
        return self._clock

    @property
    def finished(self) -> bool:
        """Whether every step of the run is done."""
        return self._clock >= self.total_steps

    def fixed_bits(self) -> dict[str, Tensor]:
        """Return the whole bit widths of each site by its name, shaped like d; empty leaves them as they are."""
        return {}

    @abstractmethod
    def _advance(self) -> None:
        """Take one step with the gradients of now; the clock still shows the steps before it."""

    def _advanced(self) -> None:
        """Do what follows when the clock has moved on."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step.

        Args:
            closure: reevaluates the model and returns the loss; called once, before the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._advance()
        self._clock += 1
        self._advanced()
        return loss


def defaults_of(inner: type[torch.optim.Optimizer], **keywords: Any) -> dict[str, Any]:
    """Return the defaults of a torch.optim class under its keywords."""
    return dict(inner([torch.nn.Parameter(torch.zeros(1))], **keywords).defaults)
