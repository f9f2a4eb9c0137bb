"""The process that owns Ray for one attempt of a run; ``orchestration.launchers.ray`` starts and watches it.

Ray's processes take seconds to come up, and so does the import of torch: the two happen at the same time. This module
therefore imports little before that.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestration.launchers.processes import die_with_parent

if TYPE_CHECKING:
    from orchestration.config import LauncherSettings
    from orchestration.launchers.base import LaunchFolder

NOT_UP = 3
"""Exit code of a driver that could not start or join Ray: on a machine without a free processor that happens."""
OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory; nothing of a run goes through it, and Ray asks for at least 75 MiB."""
ROUNDING = 1e-6
"""Ray counts in steps of 1e-4: three workers with 0.3333 CPUs fit where there is one."""
SLOW_IMPORTS = ("orchestration.launchers.ray_worker", "ray.train.torch")


def main() -> int:
    """Bring up or join Ray, train, and leave; the specification comes on the standard input."""
    die_with_parent(int(sys.argv[1]))
    spec = json.load(sys.stdin)
    os.chdir(spec["cwd"])
    times = {"driver started": time.time()}
    importlib.import_module("ray")
    times["ray imported"] = time.time()
    with ThreadPoolExecutor(1) as beside:
        imports = beside.submit(lambda: [importlib.import_module(name) for name in SLOW_IMPORTS])
        try:
            join(spec["launcher"], spec["temporary"])
        except Exception as error:  # noqa: BLE001 - Ray raises plain exceptions; the launcher decides what follows
            sys.stderr.write(f"Ray did not come up: {' '.join(str(error).split())}\n")
            return NOT_UP
        times["ray up"] = time.time()
        imports.result()
    times["trainer imported"] = time.time()
    return _train(spec, times)


def _train(spec: Mapping[str, Any], times: Mapping[str, float]) -> int:
    import ray

    from geta_core.errors import GetaError
    from orchestration.launchers.base import LaunchFolder
    from orchestration.launchers.ray import settings_of
    from orchestration.rundir import RunDirectory

    folder = LaunchFolder(RunDirectory(Path(spec["output"])))
    for event, when in times.items():
        folder.stamp(event, spec["began"], when)
    try:
        settings = settings_of(spec)
        await_room(settings, float(spec["patience"]), cast(Any, ray).nodes)
        fit(settings, spec, folder)
    except GetaError as error:
        folder.tell_end(0, error)
        return 2
    finally:
        ray.shutdown()
    return 0


def join(settings: Mapping[str, Any], temporary: str) -> None:
    """Connect to the cluster at ``launcher.address``, or start one of this machine's own.

    Args:
        settings: the plain values of the launcher's settings.
        temporary: folder for the files of a cluster that is started.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    if settings["address"] is not None:
        paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        ray.init(address=settings["address"], runtime_env={"env_vars": paths}, **quiet)
        return
    ray.init(
        # Ray's count of CPUs only orders who may start: all workers must, and the controllers take none.
        num_cpus=max(1, -(-int(settings["workers"] * settings["cpus_per_worker"] * 1000) // 1000)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        _temp_dir=temporary,
        **quiet,
    )


def places(settings: LauncherSettings, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many workers fit on a cluster's nodes when nothing else runs there.

    A worker lies on one node, and its share of a GPU on one GPU.

    Args:
        settings: of the launcher.
        nodes: resources of each node, by Ray's names.
    """

    def fit_on(node: Mapping[str, float]) -> int:
        count = int(node.get("CPU", 0) / settings.cpus_per_worker + ROUNDING)
        if settings.gpus_per_worker:
            count = min(count, int(node.get("GPU", 0)) * int(1 / settings.gpus_per_worker + ROUNDING))
        return count

    return sum(map(fit_on, nodes))


def await_room(settings: LauncherSettings, patience: float, nodes: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
    """Wait until the cluster can hold the workers.

    Args:
        settings: of ``launcher=ray``.
        patience: seconds for which nodes may still be joining.
        nodes: asks the cluster for what it has, as ``ray.nodes`` does.

    Raises:
        GetaError: when it still cannot.
    """
    from geta_core.errors import GetaError

    end = time.monotonic() + patience
    while True:
        try:
            require_room(settings, [each["Resources"] for each in nodes() if each["Alive"]])
        except GetaError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.5)
        else:
            return


def require_room(settings: LauncherSettings, nodes: Sequence[Mapping[str, float]]) -> None:
    """Check that the cluster can ever hold the workers; Ray would wait for resources without an end.

    Raises:
        GetaError: naming what is wanted and what there is.
    """
    from geta_core.errors import GetaError

    room = places(settings, nodes)
    if settings.workers > room:
        there = ", ".join(f"{node.get('CPU', 0):g} CPUs + {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise GetaError(
            f"launcher.workers={settings.workers} with {settings.cpus_per_worker:g} CPUs and "
            f"{settings.gpus_per_worker:g} GPUs each must fit on the Ray cluster, but it has room for {room} "
            f"(its nodes: {there}); lower launcher.workers, launcher.cpus_per_worker or launcher.gpus_per_worker"
        )


def fit(settings: LauncherSettings, spec: Mapping[str, Any], folder: LaunchFolder) -> None:
    """Run the workers to their end; raise Ray's error where one of them failed."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from orchestration.launchers.ray_trainer import trainer
    from orchestration.launchers.ray_worker import work

    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    arguments = {
        "train_loop_per_worker": work,
        "train_loop_config": dict(spec),
        "scaling_config": ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        "run_config": RunConfig(
            name=spec["launch"],
            storage_path=str(folder.path / "ray"),
            # The launcher starts again, since it also outlives this process and Ray itself.
            failure_config=FailureConfig(max_failures=0),
        ),
    }
    trainer(settings.address is None, arguments).fit()


if __name__ == "__main__":
    sys.exit(main())
