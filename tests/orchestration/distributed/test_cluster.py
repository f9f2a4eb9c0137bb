"""Runs on a Ray cluster that is there already: two nodes on this machine, with GPUs that are numbers only."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from geta_core.errors import ConfigError, GetaError
from orchestration.compose import compose
from orchestration.config import LauncherSettings
from orchestration.launchers.ray_driver import places, require_room
from orchestration.launchers.ray_worker import for_worker
from tests.orchestration.distributed.cluster import RunningCluster, cluster
from tests.orchestration.distributed.launches import RAY, launch, local_run, resolved, same_result, steps_saved

pytestmark = [
    pytest.mark.needs("proc"),
    pytest.mark.timeout(900),
]

SHARING = {"cpus_per_worker": 0.5, "gpus_per_worker": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one local worker."""
    place = tmp_path_factory.mktemp("cluster")
    local_run(place)
    return place


@pytest.fixture(scope="module")
def there() -> Iterator[RunningCluster]:
    """A cluster of two nodes with a CPU and a GPU each."""
    with cluster(["1+1", "1+1"]) as running:
        yield running


def test_two_workers_on_two_nodes(folder: Path, there: RunningCluster) -> None:
    """A CPU each is all that a node has, so that the two lie on different ones."""
    launcher = {**RAY, "address": there.address, "gpus_per_worker": 0.5}
    run = launch(resolved(folder, "nodes", launcher), there.environment)
    try:
        run.until(lambda: steps_saved(folder / "nodes") > 0)
        assert run.wait() == 0, run.text()
    finally:
        run.close()
    same_result(folder, "nodes")
    (attempt,) = json.loads((folder / "nodes" / "environment.json").read_text())["attempts"]
    assert attempt["workers"] == len(set(attempt["nodes"])) == 2
    assert not run.alive(), "the driver is gone; the cluster is not the run's"


def test_sigterm_saves_and_another_launcher_goes_on(folder: Path, there: RunningCluster) -> None:
    launcher = {**RAY, **SHARING, "address": there.address}
    run = launch(resolved(folder, "stopped", launcher, pause=0.1), there.environment)
    try:
        run.until(lambda: steps_saved(folder / "stopped") > 0)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 128 + signal.SIGTERM, run.text()
    finally:
        run.close()
    assert "stopped after step" in run.text() and not run.alive()
    assert not (folder / "stopped" / "result.json").exists()
    more = launch(resolved(folder, "stopped", {"name": "local"}, pause=0.1))
    assert more.wait() == 0, more.text()
    same_result(folder, "stopped")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": 4, "cpus_per_worker": 0.2, "gpus_per_worker": 0.6}, "has room for 2 (its nodes: 1 CPUs + 1 GPUs"),
        ({"workers": 3, **SHARING}, "a batch of 32 examples cannot be shared evenly by 3 workers"),
    ],
    ids=["room", "batch"],
)
def test_what_the_user_must_put_right_is_not_tried_again(
    folder: Path, there: RunningCluster, values: dict[str, float], words: str
) -> None:
    name = f"wrong-{values['workers']}"  # its own log
    run = launch(resolved(folder, name, {**RAY, **values, "address": there.address}), there.environment)
    try:
        assert run.wait() == 2, run.text()
    finally:
        run.close()
    assert words in run.text() and run.text().count("geta: ") == 1
    assert not (folder / name).exists() and not run.alive()


@pytest.mark.long
def test_a_client_without_the_token_is_not_let_in(folder: Path, there: RunningCluster) -> None:
    launcher = {**RAY, "address": there.address, "max_failures": 0}
    for other in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        run = launch(resolved(folder, "stranger", launcher), {**there.environment, **other})
        try:
            assert run.wait() == 2, run.text()
        finally:
            run.close()
        assert "Ray did not come up" in run.text()


def test_how_many_workers_fit() -> None:
    def fit(nodes: list[dict[str, float]], **settings: float) -> int:
        return places(LauncherSettings(name="ray", **settings), nodes)  # type: ignore[arg-type]

    assert fit([{"CPU": 4}, {"CPU": 3.0, "GPU": 2}]) == 7
    assert fit([{"CPU": 4}, {"CPU": 3.0, "GPU": 2}], cpus_per_worker=2) == 3
    assert fit([{"CPU": 4}, {"CPU": 3.0, "GPU": 2}], gpus_per_worker=1) == 2
    assert fit([{"CPU": 16, "GPU": 3}], gpus_per_worker=0.6) == 3, "a share lies on one GPU, so that 0.4 of each stays"
    assert fit([{"CPU": 16, "GPU": 3}], gpus_per_worker=0.3) == 9
    assert fit([{"CPU": 1}], cpus_per_worker=1 / 3) == 3
    settings = LauncherSettings(name="ray", workers=3, gpus_per_worker=1)
    require_room(settings, [{"CPU": 2, "GPU": 2}, {"CPU": 2, "GPU": 1}])
    with pytest.raises(GetaError, match=r"launcher.workers=3 with 1 CPUs and 1 GPUs each .* room for 2 \(its nodes: 2"):
        require_room(settings, [{"CPU": 2, "GPU": 2}])


def test_a_worker_with_a_share_of_a_gpu_does_not_compute_on_the_cpu_unasked() -> None:
    shared, none = LauncherSettings(name="ray", gpus_per_worker=0.5), LauncherSettings(name="ray")
    assert for_worker(compose(["task=digits", "run.device=cpu"]), shared).run.device == "cpu"
    assert for_worker(compose(["task=digits"]), none).run.device == "cpu"
    import torch

    if torch.cuda.is_available():
        assert for_worker(compose(["task=digits"]), shared).run.device == "auto"
    else:
        with pytest.raises(ConfigError, match=r"0.5 GPUs are reserved for each worker, but torch .* sees none"):
            for_worker(compose(["task=digits"]), shared)
