"""What each Ray Train worker does: meet the others, do its part of the run, leave word of the end."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, cast

from geta_core.errors import GetaError
from orchestration.config import Config, LauncherSettings
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
    from orchestration.run import Setting, attempt

    settings = settings_of(spec)
    config = _for_worker(Config.from_dict(spec["config"]), settings)
    if rank == 0:
        folder.stamp("workers started", spec["began"])
    world = _meet(settings, rank, size)
    setting = Setting(
        world=world,
        show=lambda total, done, title: FirstStep(total, log, folder, spec["began"]),
        about={**spec["about"], "workers": size},
    )
    attempt(config, place, StopFile(folder.stop), setting)
    world.close()


def _for_worker(config: Config, settings: LauncherSettings) -> Config:
    """Return the configuration with the device that Ray gave: a worker without a GPU must not take one."""
    if settings.gpus_per_worker or config.run.device != "auto":
        return config
    return replace(config, run=replace(config.run, device="cpu"))


def _meet(settings: LauncherSettings, rank: int, size: int) -> World:
    if size == 1:
        return World()
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    return Group.join(
        rank,
        size,
        broadcast_from_rank_zero,
        host=LOOPBACK if settings.address is None else cast(Any, ray.util).get_node_ip_address(),
        # NCCL refuses two workers on one GPU; gloo does not.
        backend="cpu:gloo,cuda:nccl" if settings.gpus_per_worker >= 1 else "gloo",
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
