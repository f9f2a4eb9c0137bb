"""What each Ray Train worker does: meet the others, do its part of the run, leave word of the end."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, cast

from geta_core.errors import ConfigError, GetaError
from orchestration.config import Config, LauncherSettings
from orchestration.files import room_for
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.ray import settings_of
from orchestration.progress import Plain
from orchestration.rundir import RunDirectory
from orchestration.signals import StopFile, StoppedError
from orchestration.world import LOOPBACK, Group, World


def work(spec: dict[str, Any]) -> None:
    """Do one worker's part; called by Ray Train in each worker process.

    Args:
        spec: configuration, run directory and what else the launcher wrote.
    """
    from ray.train import get_context

    os.chdir(spec["cwd"])
    place = RunDirectory(Path(spec["output"]))
    folder = LaunchFolder(place)
    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    with (
        folder.log(f"worker-{rank}").open("a", encoding="utf-8", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            _attempt(spec, place, folder, rank, size, log)
        except StoppedError as stopped:
            folder.tell_end(rank, stopped)
        except GetaError as error:
            folder.tell_end(rank, error)
            raise
        except BaseException:
            log.write(traceback.format_exc())
            raise


def _attempt(
    spec: Mapping[str, Any], place: RunDirectory, folder: LaunchFolder, rank: int, size: int, log: TextIO
) -> None:
    from ray import get_runtime_context

    from orchestration.run import GOES_ON, Setting, attempt

    settings = settings_of(spec)
    config = for_worker(Config.from_dict(spec["config"]), settings)
    if rank == 0:
        folder.stamp("workers started", spec["began"])
    # NCCL refuses two workers on one GPU; gloo does not.
    own_gpu = settings.gpus_per_worker >= 1 and config.run.device != "cpu"
    world = _meet(settings, rank, size, "cpu:gloo,cuda:nccl" if own_gpu else "gloo")
    nodes = [each.decode() for each in world.collect(get_runtime_context().get_node_id().encode())]
    setting = Setting(
        world=world,
        show=lambda total, done, title: FirstStep(total, log, folder, spec["began"]),
        about={**spec["about"], "workers": size, "nodes": nodes},
    )
    with room_for(place.path, GOES_ON):
        attempt(config, place, StopFile(folder.stop), setting)
    world.close()


def for_worker(config: Config, settings: LauncherSettings) -> Config:
    """Return the configuration with the device that Ray gave: a worker without a GPU must not take one.

    Raises:
        ConfigError: when Ray gave a GPU and torch sees none; the CPU is used only where ``run.device`` says so.
    """
    if config.run.device != "auto":
        return config
    if not settings.gpus_per_worker:
        return replace(config, run=replace(config.run, device="cpu"))
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            [
                f"{settings.gpus_per_worker:g} GPUs are reserved for each worker, but torch {torch.__version__} sees "
                f"none on {platform.node()}; install torch for its GPUs there, or set run.device=cpu"
            ]
        )
    return config


def _meet(settings: LauncherSettings, rank: int, size: int, backend: str) -> World:
    if size == 1:
        return World()
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    return Group.join(
        rank,
        size,
        broadcast_from_rank_zero,
        host=LOOPBACK if settings.address is None else cast(Any, ray.util).get_node_ip_address(),
        backend=backend,
        timeout_s=settings.timeout_s,
    )


class FirstStep(Plain):
    """Lines of text; notes when the first step was done.

    Args:
        total: steps of the run.
        stream: where the lines go.
        folder: where the time is noted.
        began: ``time.time()`` at the launch.
    """

    def __init__(self, total: int, stream: TextIO, folder: LaunchFolder, began: float) -> None:
        super().__init__(total, stream)
        self._folder, self._began, self._seen = folder, began, False

    def advance(self, step: int) -> None:
        """Note the first step."""
        if not self._seen:
            self._seen = True
            self._folder.stamp("first step", self._began)
