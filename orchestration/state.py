"""Everything that a run is made of while it trains, and how it is saved and restored bit for bit."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from baselines.base import Method
from geta_core import Prepared, Schedule
from geta_core.errors import ArtifactError
from orchestration.config import Config
from orchestration.device import Compute
from orchestration.meter import Meter
from orchestration.tasks.base import Task, generator
from orchestration.world import World

if TYPE_CHECKING:
    from orchestration.parallel import SharedNorms

FORMAT = 2
NEVER = -1


@dataclass
class Session:
    """One run in memory."""

    config: Config
    task: Task
    method: Method
    compute: Compute
    prepared: Prepared
    model: nn.Module
    """What a training step calls: the prepared model, wrapped for several workers and compiled where asked for."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    total_steps: int
    dense_shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the parameters before anything was changed."""
    step: int = 0
    """Optimizer steps done; epoch and place in the epoch follow from it."""
    seconds: float = 0.0
    """Time spent training, over all attempts."""
    stage: str = ""
    """Stage of the last step that was done."""
    epoch_meter: Meter = field(default_factory=Meter)
    stage_meter: Meter = field(default_factory=Meter)
    first_bad: Tensor = field(default_factory=lambda: torch.tensor(NEVER))
    """First step whose loss was not finite, on the device; -1 while there is none."""
    world: World = field(default_factory=World)
    """The workers of this run; a checkpoint does not depend on how many there are."""
    norms: SharedNorms | None = None
    """Batch normalisations that take their statistics over all workers, if any."""

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.step // self.task.steps_per_epoch()

    def next_stage(self) -> str:
        """Return the stage that the next step belongs to; methods without stages have one, "train"."""
        return str(getattr(self.optimizer, "stage", "train"))

    def period_ended(self) -> bool:
        """Whether the last step ended a period of bits or of pruning."""
        schedule = getattr(self.optimizer, "schedule", None)
        return isinstance(schedule, Schedule) and self.step > 0 and schedule.boundary(self.step - 1)

    def learning_rates(self) -> dict[str, float]:
        """Return the rate of the weights and, where there are quantizers, theirs."""
        names = ("lr", "lr_quant")
        groups = self.optimizer.param_groups
        return {name: float(group["lr"]) for name, group in zip(names, groups, strict=False)}


def gather(session: Session, journal_offset: int) -> dict[str, Any]:
    """Return the whole state of a run as tensors and plain values; every worker must make this call."""
    for meter in (session.epoch_meter, session.stage_meter):
        meter.agree_(session.world)
    return {
        "format": FORMAT,
        "config": session.config.digest(),
        "step": session.step,
        "total_steps": session.total_steps,
        "seconds": session.seconds,
        "stage": session.stage,
        "journal": journal_offset,
        "model": session.prepared.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "scheduler": session.scheduler.state_dict(),
        "scaler": session.scaler.state_dict(),
        "epoch_meter": session.epoch_meter.state_dict(),
        "stage_meter": session.stage_meter.state_dict(),
        "random": [_unpacked(each) for each in session.world.collect(_packed(random_state()))],
    }


def scatter(session: Session, state: Mapping[str, Any]) -> None:
    """Put a saved state back into a freshly assembled run.

    Raises:
        ArtifactError: when the state belongs to another version or another configuration.
    """
    if state.get("format") != FORMAT:
        raise ArtifactError(f"the checkpoint has format {state.get('format')!r}, but this version reads {FORMAT}")
    if state["config"] != session.config.digest() or state["total_steps"] != session.total_steps:
        raise ArtifactError("the checkpoint belongs to another configuration or amount of data; use another run.output")
    session.prepared.model.load_state_dict(state["model"])
    session.optimizer.load_state_dict(state["optimizer"])
    session.scheduler.load_state_dict(state["scheduler"])
    if session.scaler.is_enabled():
        session.scaler.load_state_dict(state["scaler"])
    session.epoch_meter.load_state_dict(state["epoch_meter"], session.compute.device)
    session.stage_meter.load_state_dict(state["stage_meter"], session.compute.device)
    session.step, session.seconds, session.stage = state["step"], state["seconds"], state["stage"]
    _go_on_with_random_numbers(session, state["random"])


def _go_on_with_random_numbers(session: Session, states: Sequence[Mapping[str, Any]]) -> None:
    """Put this worker's generators back; a worker that was not there before gets numbers of its own."""
    rank = session.world.rank
    if rank < len(states):
        set_random_state(states[rank])
    else:
        torch.manual_seed(generator(session.config.run.seed, rank, session.step).initial_seed())


def _packed(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def random_state() -> dict[str, Any]:
    """Return the state of every random generator that a training may use."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(algorithm), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    algorithm, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))
