"""The base optimizer and the course of its learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from baselines.schema import Bounds
from baselines.stages import Share
from geta_core.errors import ConfigError

if TYPE_CHECKING:
    import torch

Fraction = Annotated[float, Bounds(0, 1)]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The torch.optim class that the method steps with."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """Class in torch.optim."""
    lr: Annotated[float, Bounds(0, above=True)] = 0.1
    """Learning rate of the weights at its highest."""
    weight_decay: Annotated[float, Bounds(0)] = 1e-4
    """Weight decay of the weights; quantizer parameters have none."""
    momentum: Annotated[float, Bounds(0, 1, below=True)] = 0.9
    """Momentum, SGD only."""
    nesterov: bool = False
    """Nesterov momentum, SGD only."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the moments, Adam and AdamW only."""

    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        """Return the torch.optim class."""
        import torch

        return {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.name]

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments of the class."""
        shared: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.name == "sgd":
            return {**shared, "momentum": self.momentum, "nesterov": self.nesterov}
        return {**shared, "betas": self.betas}


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """Course of the learning rates over the run; it acts on weights and quantizer parameters alike."""

    name: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: half a cosine down to final; step: times gamma at each milestone; constant."""
    warmup: Share = 0.0
    """Linear rise at the start, as a fraction of the run or in steps."""
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """Points of the run where the rate falls (step only)."""
    gamma: Annotated[float, Bounds(0, 1, above=True)] = 0.1
    """Factor at each milestone (step only)."""
    final: Fraction = 0.0
    """Share of the highest rate that is left at the end (cosine only)."""

    def warmup_steps(self, total_steps: int) -> int:
        """Return the length of the rise in steps."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * total_steps)

    def factor(self, step: int, total_steps: int) -> float:
        """Return the share of the highest rate that holds in a step (counted from 0)."""
        warmup = self.warmup_steps(total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.name == "step":
            return float(self.gamma ** sum(step >= round(point * total_steps) for point in self.milestones))
        if self.name == "cosine":
            done = (step - warmup) / max(total_steps - warmup, 1)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return 1.0


def build_scheduler(
    settings: SchedulerSettings, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a scheduler that is stepped after every optimizer step.

    Raises:
        ConfigError: when the rise is longer than the run.
    """
    from torch.optim.lr_scheduler import LambdaLR

    warmup = settings.warmup_steps(total_steps)
    if warmup > total_steps:
        raise ConfigError([f"scheduler.warmup must not exceed the run's {total_steps} steps, but got {warmup}"])
    return LambdaLR(optimizer, lambda step: settings.factor(step, total_steps))
