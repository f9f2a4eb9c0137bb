"""Data parallel training: the model that a step of several workers calls, and each worker's share of a batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geta_core import Prepared
from geta_core.errors import ConfigError, GetaError
from orchestration.config import Config
from orchestration.device import Compute
from orchestration.state import random_state, set_random_state
from orchestration.tasks.base import DividedBatches, Loss, Part, Task, generator
from orchestration.world import World

WHOLE_TENSORS = (
    "FSDP and tensor parallelism are not supported: groups, masks and quantizers need every parameter whole on each "
    "worker; give the plain model, and use launcher=ray with data parallel workers"
)


def refuse_sharded(model: nn.Module) -> None:
    """Raise where a model's parameters are spread over workers.

    Raises:
        GetaError: for FSDP (both kinds) and tensor parallel models.
    """
    # What was never imported has no instances, and importing it takes seconds.
    fsdp, tensors = sys.modules.get("torch.distributed.fsdp"), sys.modules.get("torch.distributed.tensor")
    if fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()):
        raise GetaError(WHOLE_TENSORS)
    if tensors is not None and any(isinstance(parameter, tensors.DTensor) for parameter in model.parameters()):
        raise GetaError(WHOLE_TENSORS)


def train_batches(task: Task, part: Part, epoch: int, start_step: int) -> Iterator[Any]:
    """Yield this worker's rows of each training batch; over all workers they are the batches of one worker alone."""
    if part.size == 1:
        yield from task.train_batches(epoch, start_step)
    elif isinstance(task, DividedBatches):
        yield from task.part_batches(part, epoch, start_step)
    else:
        for batch in task.train_batches(epoch, start_step):
            yield cut(batch, part)


def cut(batch: Any, part: Part) -> Any:
    """Return a part of the rows of every tensor in a batch; tensors without dimensions stay.

    Raises:
        GetaError: when the rows cannot be shared evenly, or the tensors do not have the same number of rows.
    """
    from torch.utils._pytree import tree_leaves, tree_map

    counts = {len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(counts) != 1:
        raise GetaError(
            f"a batch is shared by its rows, but its tensors have {sorted(counts)} rows; give the task a method "
            "part_batches (orchestration.tasks.base.DividedBatches)"
        )
    (count,) = counts
    if count % part.size:
        raise GetaError(
            f"a batch of {count} examples cannot be shared evenly by {part.size} workers; make task.batch_size a "
            "multiple of launcher.workers"
        )
    return tree_map(lambda leaf: part.rows(leaf) if isinstance(leaf, Tensor) and leaf.dim() else leaf, batch)


class SharedNorms:
    """The batch normalisations of a model while they take their statistics over all workers.

    The modules are exchanged for ``torch.nn.SyncBatchNorm`` with the same parameters and buffers; ``restore_`` puts the
    user's own modules back, which the compression needs.

    Args:
        model: changed in place.
        compute: its device.

    Raises:
        ConfigError: torch synchronises statistics on GPUs only.
    """

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        if compute.device.type != "cuda":
            raise ConfigError([f"launcher.sync_batchnorm needs GPUs, but the workers compute on {compute.device.type}"])
        self._replaced = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, _BatchNorm)
        ]
        for parent, name, child in self._replaced:
            setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))

    def restore_(self) -> None:
        """Put the user's modules back, with what was learned."""
        for parent, name, child in self._replaced:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)


def spread(
    world: World, prepared: Prepared, task: Task, compute: Compute, config: Config
) -> tuple[nn.Module, SharedNorms | None]:
    """Return the model that a training step calls, and the exchanged batch normalisations if there are any.

    With several workers the model averages gradients over them in the backward pass, and each worker but the leader
    gets random numbers of its own. The first batch is run once on the plain model, and undone, to learn whether
    parameters go without a gradient: DDP has to look for them in every step then.
    """
    from torch.nn.parallel import DistributedDataParallel

    if world.size == 1:
        return prepared.model, None
    norms = SharedNorms(prepared.model, compute) if config.launcher.sync_batchnorm else None
    unused = world.largest([int(_has_unused_parameters(world, prepared.model, task, compute))])[0]
    stepped = DistributedDataParallel(
        prepared.model,
        device_ids=[compute.device] if compute.device.type == "cuda" else None,
        find_unused_parameters=bool(unused),
        gradient_as_bucket_view=True,
    )
    if not world.leads:
        torch.manual_seed(generator(config.run.seed, world.rank).initial_seed())
    return stepped, norms


def _has_unused_parameters(world: World, model: nn.Module, task: Task, compute: Compute) -> bool:
    before = random_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    batches = train_batches(task, world.part, 0, 0)
    try:
        with compute.autocast():
            outcome = task.loss(model, next(batches))
        loss = Loss(*outcome).value if isinstance(outcome, tuple) else outcome
        loss.backward()
        return any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        set_random_state(before)
