"""The process that owns Ray for one attempt of a run; ``orchestration.launchers.ray`` starts and watches it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from geta_core.errors import GetaError
from orchestration.config import LauncherSettings
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.processes import die_with_parent
from orchestration.launchers.ray import NOT_UP, OBJECT_STORE, settings_of
from orchestration.launchers.ray_worker import work
from orchestration.rundir import RunDirectory


def main() -> int:
    """Bring up or join Ray, train, and leave; the specification comes on the standard input."""
    die_with_parent(int(sys.argv[1]))
    spec = json.load(sys.stdin)
    os.chdir(spec["cwd"])
    folder = LaunchFolder(RunDirectory(Path(spec["output"])))
    folder.stamp("driver started", spec["began"])
    import ray

    folder.stamp("ray imported", spec["began"])
    settings = settings_of(spec)
    try:
        join(settings, spec)
    except Exception as error:  # noqa: BLE001 - Ray raises plain exceptions; the launcher decides what follows
        sys.stderr.write(f"Ray did not come up: {' '.join(str(error).split())}\n")
        return NOT_UP
    folder.stamp("ray up", spec["began"])
    try:
        await_room(settings, float(spec["patience"]), cast(Any, ray).cluster_resources)
        fit(settings, spec, folder)
    except GetaError as error:
        folder.tell_end(0, error)
        return 2
    finally:
        ray.shutdown()
    return 0


def join(settings: LauncherSettings, spec: Mapping[str, Any]) -> None:
    """Connect to the cluster at ``launcher.address``, or start one of this machine's own."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    if settings.address is not None:
        paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        ray.init(address=settings.address, runtime_env={"env_vars": paths}, **quiet)
        return
    ray.init(
        # Ray's count of CPUs only orders who may start: all workers must, and the controllers take none.
        num_cpus=max(1, -(-int(settings.workers * settings.cpus_per_worker * 1000) // 1000)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        _temp_dir=spec["temporary"],
        **quiet,
    )


def await_room(settings: LauncherSettings, patience: float, resources: Callable[[], Mapping[str, float]]) -> None:
    """Wait until the cluster can hold the workers.

    Args:
        settings: of ``launcher=ray``.
        patience: seconds for which nodes may still be joining.
        resources: asks the cluster for what it has.

    Raises:
        GetaError: when it still cannot.
    """
    end = time.monotonic() + patience
    while True:
        try:
            require_room(settings, resources())
        except GetaError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.5)
        else:
            return


def require_room(settings: LauncherSettings, resources: Mapping[str, float]) -> None:
    """Check that the cluster can ever hold the workers; Ray would wait for resources without an end.

    Raises:
        GetaError: naming what is wanted and what there is.
    """
    wanted = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    for name, each in wanted.items():
        total, there = each * settings.workers, resources.get(name, 0)
        if total > there + 1e-9:
            raise GetaError(
                f"launcher.workers={settings.workers} with {each:g} {name}s each need {total:g}, but the Ray cluster "
                f"has {there:g}; lower launcher.workers or launcher.{name.lower()}s_per_worker"
            )


def fit(settings: LauncherSettings, spec: Mapping[str, Any], folder: LaunchFolder) -> None:
    """Run the workers to their end; raise Ray's error where one of them failed."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class OwnMeeting(TorchConfig):
        """Workers meet by themselves (orchestration.world): Ray's meeting point listens on every address."""

        @property
        def backend_cls(self) -> type:
            return Backend

    folder.stamp("trainer imported", spec["began"])
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    trainer = TorchTrainer(
        work,
        train_loop_config=dict(spec),
        torch_config=OwnMeeting(),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=spec["launch"],
            storage_path=str(folder.path / "ray"),
            # The launcher starts again, since it also outlives this process and Ray itself.
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    sys.exit(main())
