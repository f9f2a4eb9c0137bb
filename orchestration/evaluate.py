"""Measures models: accuracy on a split, and seconds for one example."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from orchestration.device import Compute
from orchestration.state import Session
from orchestration.tasks.base import DividedEvaluation, Split, means

WARM_UP, REPEATS = 5, 30


def evaluate(session: Session, split: Split, model: nn.Module | None = None) -> Mapping[str, float]:
    """Return the task's numbers for a model, by default the one that is trained, in the run's precision."""
    with session.compute.autocast():
        return session.task.evaluate(session.prepared.model if model is None else model, split)


def evaluate_together(session: Session, split: Split) -> Mapping[str, float]:
    """Return the task's numbers for the model that is trained; every worker does a part and must make this call.

    Every example counts once, whatever the number of workers. Where the task cannot divide its work the leader does
    all of it, and the others get no numbers.
    """
    world, task, model = session.world, session.task, session.prepared.model
    if world.size == 1:
        return evaluate(session, split)
    world.share_(list(model.buffers()))  # running statistics are the leader's, as they are in the next step
    if not isinstance(task, DividedEvaluation):
        with world.leader_first():
            return evaluate(session, split) if world.leads else {}
    with session.compute.autocast():
        totals = task.totals(model, split, world.part)
    summed = torch.stack([value.to(session.compute.device, torch.float64) for value in totals.values()])
    return means(dict(zip(totals, world.total(summed), strict=True)))


@torch.inference_mode()
def latency_ms(model: nn.Module, example: object, compute: Compute) -> float:
    """Return the median time of one forward pass for a single example, in milliseconds, in evaluation mode.

    Args:
        model: on its device.
        example: inputs as the task's ``example_inputs`` gives them; the first example of the batch is used.
        compute: the device.
    """
    from torch.utils._pytree import tree_map_only

    from baselines.helpers.calling import call

    single = tree_map_only(torch.Tensor, lambda tensor: tensor[:1], example)
    training = model.training
    model.eval()
    times = []
    try:
        for _ in range(WARM_UP + REPEATS):
            compute.wait()
            started = time.perf_counter()
            call(model, single)
            compute.wait()
            times.append(time.perf_counter() - started)
    finally:
        model.train(training)
    return statistics.median(times[WARM_UP:]) * 1000
