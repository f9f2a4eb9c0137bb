"""Several workers in one batch job: Ray inside the allocation, with the workers of ``launcher=ray``.

The job's step has one task on each node. On one node Ray is started on loopback, as by ``launcher=ray``. On several the
first task starts Ray's head and the driver, each other task a node that joins it; all of them then meet as on any Ray
cluster with an address. The token that Ray asks for is made in the job's shell and reaches the tasks by their
environment alone (``slurm_settings.TOKEN``); what the tasks tell each other lies in the run directory and is no secret.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geta_core.errors import GetaError
from orchestration.config import Config, LauncherSettings
from orchestration.files import read_object, write_json
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.processes import kill_marked, private_folder
from orchestration.launchers.ray import Launch, ray_environment
from orchestration.launchers.ray_driver import OBJECT_STORE
from orchestration.launchers.requeue import Requeues
from orchestration.launchers.slurm_job import job_number, node, restarts, task
from orchestration.launchers.slurm_network import BLOCK, address_towards, answers, free_block, own_address
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError, StopRequest, shielded

CLUSTER, LOST, COUNTS = "cluster.json", "lost-{}.json", "attempts-in-job.json"
"""In the launcher's folder: where a start's cluster is, a node's word that Ray ended there, attempts of a start."""
SERVICES = (
    *("port", "node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("metrics-export-port", "runtime-env-agent-port", "ray-client-server-port"),
)
"""Ray's services, in the order of their ports in a block; from place ten on come the workers'."""
WORKER_PORTS = 10
COMES_UP = 300.0
"""Seconds for which a part of the cluster may be coming up."""
TRIES = 3
"""Times that Ray is started on a node: on a busy machine it may take longer than the half minute that Ray allows."""
LOOK_EVERY = 0.3
"""Seconds between looks at Ray's process and at the words of the others."""
LOOK_FOR_END = 2.0
"""Seconds between a node's looks at the run directory."""


class ClusterLostError(Exception):
    """A part of Ray is gone, and the job with it: it has to start again as a whole.

    Args:
        message: what is gone.
        tried: whether the run had a chance to make progress before.
    """

    def __init__(self, message: str, tried: bool = True) -> None:
        super().__init__(message)
        self.tried = tried


def work_with_ray(
    config: Config, place: RunDirectory, stop: StopRequest, about: Mapping[str, Any], began: float
) -> None:
    """Do the first task's part: bring Ray up, do the run with its workers, and take Ray down.

    Args:
        config: of the run, with ``launcher=slurm`` and more than one worker.
        place: its directory.
        stop: the request to stop.
        about: what the records say of the attempt.
        began: ``time.time()`` at the submission.

    Raises:
        ClusterLostError: Ray's head or a node is gone.
        GetaError: the run is not to be started again.
        StoppedError: a request to stop was obeyed.
    """
    folder, name = LaunchFolder(place), f"{job_number()}-{restarts()}"
    requeues = Requeues(folder.path / COUNTS, name, config.launcher.max_failures)
    if config.launcher.nodes == 1:
        Launch(config, place, ray_settings(config.launcher, None), requeues, about, began, name).run(stop)
        return
    try:
        for turn in range(TRIES):
            before = _times_started(folder)
            try:
                with _head(folder, config.launcher, stop) as head:
                    settings = ray_settings(config.launcher, f"{head.host}:{head.port}")
                    Launch(config, place, settings, requeues, about, began, name, head.check, COMES_UP).run(stop)
                return
            except ClusterLostError as lost:
                tried = _times_started(folder) > before
                if tried or turn + 1 == TRIES:
                    raise ClusterLostError(str(lost), tried) from None
    finally:
        _tell(folder, None, over=True)


def _times_started(folder: LaunchFolder) -> int:
    """Return how often workers have started in this run directory."""
    return folder.timeline.read_text().count("workers started") if folder.timeline.exists() else 0


def ray_settings(settings: LauncherSettings, address: str | None) -> LauncherSettings:
    """Return the settings of ``launcher=ray`` for a job.

    Args:
        settings: of ``launcher=slurm``.
        address: of the job's Ray cluster; None where it has one node.
    """
    return LauncherSettings(
        name="ray",
        workers=settings.workers,
        # Ray only counts; the nodes of the cluster are told to hold as many workers as they shall.
        cpus_per_worker=1.0,
        gpus_per_worker=settings.gpus_per_node / (settings.workers // settings.nodes),
        address=address,
        max_failures=settings.max_failures,
        sync_batchnorm=settings.sync_batchnorm,
        timeout_s=settings.timeout_s,
    )


def serve(place: RunDirectory, settings: LauncherSettings) -> None:
    """Do another task's part: join the head with this node, and stay until the run's end.

    Args:
        place: the run directory.
        settings: of ``launcher=slurm``.

    Raises:
        GetaError: when the head did not come up.
    """
    folder, left = LaunchFolder(place), 0
    known: dict[str, Any] = {}
    while not (cluster := _await_cluster(folder))["over"]:
        if cluster != known:
            known, left = cluster, TRIES
        if left == 0:
            write_json(folder.path / LOST.format(task()), {**_this_start(), "node": node()})
        if left <= 0:  # the first task puts the job into the queue
            time.sleep(LOOK_FOR_END)
        elif _join(folder, settings, cluster):
            continue
        left -= 1


def _join(folder: LaunchFolder, settings: LauncherSettings, cluster: Mapping[str, Any]) -> bool:
    """Run Ray on this node while the head is where it was; return False where Ray has ended by itself."""
    own = address_towards(cluster["address"])
    options = {"address": cluster["address"], **_ports(own, head=False)}
    with _ray(folder, settings, own, options) as process:
        looked = time.monotonic()
        while process.poll() is None:
            time.sleep(LOOK_EVERY)
            if time.monotonic() - looked > LOOK_FOR_END:
                looked = time.monotonic()
                if _cluster(folder) != cluster:
                    return True
    return False


def _ports(address: str, head: bool) -> dict[str, str]:
    first = free_block(int(os.environ["SLURM_JOB_ID"]), address)
    chosen = {service: str(first + number) for number, service in enumerate(SERVICES)}
    if not head:
        del chosen["port"]
    if not head or importlib.util.find_spec("grpc") is None:  # without that package Ray has no such server
        del chosen["ray-client-server-port"]
    last = first + BLOCK - 1
    return {**chosen, "min-worker-port": str(first + WORKER_PORTS), "max-worker-port": str(last)}


@dataclass(frozen=True)
class Head:
    """Ray's head on the first node."""

    folder: LaunchFolder
    process: subprocess.Popen[bytes]
    host: str
    port: int

    def check(self) -> None:
        """Raise what has become of the cluster, if it is not whole.

        Raises:
            ClusterLostError: always then.
        """
        if self.process.poll() is not None:
            raise ClusterLostError(f"Ray's head ended with code {self.process.returncode}: {_last_line(self.folder)}")
        for path in self.folder.path.glob(LOST.format("*")):
            raise ClusterLostError(f"Ray ended on the node {read_object(path).get('node', '?')}")

    def await_up(self, stop: StopRequest) -> None:
        """Wait until the head answers.

        Raises:
            ClusterLostError: it does not.
            StoppedError: a stop was asked for meanwhile.
        """
        end = time.monotonic() + COMES_UP
        while not answers(self.host, self.port):
            self.check()
            if stop:
                raise StoppedError("stopped before Ray was up; the same command goes on", stop.signal_number)
            if time.monotonic() > end:
                raise ClusterLostError(f"Ray's head did not come up in {COMES_UP:.0f} s")
            time.sleep(LOOK_EVERY)


@contextmanager
def _head(folder: LaunchFolder, settings: LauncherSettings, stop: StopRequest) -> Iterator[Head]:
    """Start Ray's head and say where it is; in the end it is gone and the other nodes are told to leave."""
    for left in folder.path.glob(LOST.format("*")):
        left.unlink(missing_ok=True)
    own = own_address(node())
    options = {"head": "", "include-dashboard": "false", **_ports(own, head=True)}
    with _ray(folder, settings, own, options) as process:
        head = Head(folder, process, own, int(options["port"]))
        head.await_up(stop)
        _tell(folder, f"{own}:{head.port}")
        try:
            yield head
        finally:
            _tell(folder, None)  # they leave while Ray ends here


def _tell(folder: LaunchFolder, address: str | None, over: bool = False) -> None:
    """Tell the other tasks where the head is, and whether they are still needed."""
    write_json(folder.path / CLUSTER, {**_this_start(), "since": time.time(), "address": address, "over": over})


@contextmanager
def _ray(
    folder: LaunchFolder, settings: LauncherSettings, own: str, options: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``ray start`` for this node; in the end all of its processes and its temporary folder are gone."""
    mark = f"{job_number()}-{restarts()}-node-{task()}"
    per_node = settings.workers // settings.nodes
    with private_folder(mark) as temporary, _log(folder).open("ab") as log:
        chosen = {
            "node-ip-address": own,
            "num-cpus": str(per_node),
            "num-gpus": str(settings.gpus_per_node),
            "object-store-memory": str(OBJECT_STORE),
            "temp-dir": str(temporary),
            "include-log-monitor": "false",
            **options,
        }
        flags = [f"--{key}={value}" if value else f"--{key}" for key, value in chosen.items()]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *flags]
        environment = ray_environment(ray_settings(settings, own), mark, temporary)
        with shielded():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "TMPDIR": str(temporary)},
                cwd="/",
            )
        try:
            yield process
        finally:
            # Nothing that Ray holds is of use now, and the job may have little time left.
            kill_marked(mark)
            process.wait()


def _await_cluster(folder: LaunchFolder) -> dict[str, Any]:
    """Return where this start's head is, once it is up, or that this node is not needed any more."""
    end = time.monotonic() + COMES_UP
    while time.monotonic() < end:
        found = _cluster(folder)
        ours = {key: found.get(key) for key in _this_start()} == _this_start()
        if ours and (found["address"] or found["over"]):
            return found
        time.sleep(LOOK_EVERY)
    raise GetaError(f"Ray's head was not seen in {COMES_UP:.0f} s in {folder.path / CLUSTER}: do the nodes share it?")


def _cluster(folder: LaunchFolder) -> dict[str, Any]:
    return read_object(folder.path / CLUSTER)


def _this_start() -> dict[str, Any]:
    return {"job": job_number(), "start": restarts()}


def _log(folder: LaunchFolder) -> Path:
    return folder.log(f"ray-{task()}")


def _last_line(folder: LaunchFolder) -> str:
    lines = _log(folder).read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[:300]
