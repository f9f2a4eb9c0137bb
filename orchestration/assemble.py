"""From a configuration to everything that a training needs; nothing is written here."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from baselines.base import Method, matched, planned_steps
from baselines.helpers.statistics import settle_statistics_
from baselines.registry import METHODS
from geta_core.errors import ConfigError
from orchestration.agreement import agree_at_start
from orchestration.config import TASK_STATES, Config
from orchestration.device import choose_compute, set_up_process
from orchestration.models import registry
from orchestration.optim import build_scheduler
from orchestration.parallel import refuse_sharded, spread
from orchestration.state import Session
from orchestration.tasks import TASKS
from orchestration.tasks.base import Task
from orchestration.weights import load_weights
from orchestration.world import World

CALIBRATION_BATCHES = 8


def assemble(config: Config, world: World | None = None) -> Session:
    """Read the data, build and prepare the model, and make optimizer and scheduler.

    Args:
        config: of the run.
        world: the workers of the run, each of which must make this call; this process alone if not given.

    Raises:
        GetaError: for whatever does not fit together.
    """
    world = world or World()
    compute = choose_compute(config.run)
    set_up_process(config.run)
    task = cast(Task, TASKS.resolve(config.task.name)(**config.task.options))
    with world.leader_first():  # a download happens once
        task.setup(config.run.seed, compute.placement)
    model = compute.place(build_model(config, task)).train()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    calibration = task.calibration_batches(CALIBRATION_BATCHES)
    if config.model.weights is None:
        # Ranges of layer inputs are calibrated in evaluation mode. With the statistics that a fresh layer has (mean 0,
        # variance 1) they would be ranges of activations that never occur in training.
        settle_statistics_(model, calibration)
    chosen = cast(Method, METHODS.resolve(config.method.name)(**config.method.options))
    method = matched(chosen, model, task.example_inputs())
    prepared = method.prepare(model, task.example_inputs(), calibration)
    prepared.model.train()
    agree_at_start(world, prepared)
    total_steps = planned_steps(method, config.run.steps or config.run.epochs * task.steps_per_epoch())
    settings = config.optimizer
    optimizer = method.optimizer(prepared, total_steps, settings.optimizer_class(), **settings.keywords())
    stepped, norms = spread(world, prepared, task, compute, config)
    return Session(
        config=config,
        task=task,
        method=method,
        compute=compute,
        prepared=prepared,
        model=cast(nn.Module, torch.compile(stepped)) if config.run.compile else stepped,
        optimizer=optimizer,
        scheduler=build_scheduler(config.scheduler, optimizer, total_steps),
        scaler=compute.scaler(),
        total_steps=total_steps,
        dense_shapes=shapes,
        first_bad=torch.tensor(-1, device=compute.device),
        world=world,
        norms=norms,
    )


def build_model(config: Config, task: Task) -> nn.Module:
    """Build the model for the task's data and load the weights it starts from, on the CPU.

    Raises:
        GetaError: when the options or the weights do not fit.
    """
    entry = registry.find(config.model.name)
    stated = {key: value for key, value in task.model_options().items() if key in TASK_STATES and entry.accepts(key)}
    options: dict[str, Any] = {**stated, **config.model.options}
    model = entry.build(options)
    if config.model.weights is not None:
        load_weights(model, config.model.weights)
    refuse_sharded(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError([f"model={config.model.name} must have parameters that can be trained"])
    return model
