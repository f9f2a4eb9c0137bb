"""``launcher=ray``: N worker processes under Ray Train, watched from here.

This process imports no Ray. It starts a driver process that brings up Ray (or joins the cluster at
``launcher.address``) and fits a TorchTrainer, shows what the leading worker says, hands requests to stop on, and starts
the driver again where it, a worker or Ray died. Every start goes on from the last checkpoint of the run directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from geta_core.errors import GetaError
from orchestration.config import Config, LauncherSettings
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.processes import MARK, kill_session, private_folder
from orchestration.launchers.ray_driver import NOT_UP
from orchestration.launchers.requeue import Requeues, saved_step
from orchestration.owner import alive, owned
from orchestration.records import command
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from orchestration.signals import StoppedError, StopRequest, shielded, stop_requests

LEADER = "worker-0"
DRIVER = "driver"
LOOK_EVERY = 0.2
"""Seconds between looks at the driver and at the leader's log."""
LINGERS = 60.0
"""Seconds that Ray gets to shut down when the workers have said how they ended."""
LAST_LINES = 2000
"""Bytes at the end of a log in which the reason of a failure is looked for."""


class Failure(NamedTuple):
    """Why an attempt did not complete the run, and whether its workers were tried at all."""

    reason: str
    tried: bool


class RayLauncher:
    """Runs under Ray Train."""

    def launch(self, config: Config, place: RunDirectory) -> RunResult:
        """Execute the run with ``launcher.workers`` workers."""
        began, name, folder = time.time(), secrets.token_hex(8), LaunchFolder(place)
        with owned(folder.path), stop_requests() as stop:
            requeues = Requeues(folder.attempts, name, config.launcher.max_failures)
            Launch(config, place, config.launcher, requeues, {"command": command()}, began=began, name=name).run(stop)
        return RunResult.load(place.result)


@dataclass
class Launch:
    """A run under Ray, from its first attempt to its last."""

    config: Config
    place: RunDirectory
    settings: LauncherSettings
    """How Ray is used, with the keys of launcher=ray; the run's own configuration may name another launcher."""
    requeues: Requeues
    about: Mapping[str, Any]
    """What the records of the attempts say, such as the command."""
    began: float
    """``time.time()`` at the launch."""
    name: str
    """Marks the processes of the launch."""
    check: Callable[[], None] = lambda: None
    """Called several times a second; what it raises ends the attempt and the launch."""
    patience: float = 0.0
    """Seconds for which nodes of the cluster at ``settings.address`` may still be joining it."""

    def __post_init__(self) -> None:
        self._folder = LaunchFolder(self.place)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._show = _Tail(self._folder.log(LEADER))

    def run(self, stop: StopRequest) -> None:
        """Start attempts until the run is complete.

        Raises:
            GetaError: it is not to be started again.
            StoppedError: a request to stop was obeyed.
        """
        while not self.place.result.is_file():
            step = saved_step(self.place.checkpoints)
            self._folder.open()
            failure = self._drive(f"{self.name}-{len(self.requeues.attempts)}", stop)
            self._judge(step, failure, stop)
            self._until_let_go()

    def _judge(self, step: int, failure: Failure, stop: StopRequest) -> None:
        """Decide, after the driver's end, whether the run is complete, over, or to be started again."""
        if self.place.result.is_file():
            return
        try:
            self._folder.raise_end()
        except GetaError:
            if not self.place.resolved.is_file():
                self._folder.remove_if_alone()
            raise
        if stop:
            raise StoppedError("stopped before the workers trained; the same command goes on", stop.signal_number)
        now = saved_step(self.place.checkpoints)
        try:
            self.requeues.ended(step, now, failure.reason, failure.tried)
        except GetaError as error:
            raise GetaError(f"{error}; the logs are in {self._folder.path}") from None
        sys.stderr.write(f"geta: {failure.reason}; starting again from step {now}\n")

    def _until_let_go(self) -> None:
        """Wait until the workers of the attempt before have left the run directory.

        On a cluster of the user's own they live until Ray has noticed that their driver is gone.
        """
        until = time.monotonic() + LINGERS
        while alive(self.place.path) and time.monotonic() < until:
            time.sleep(LOOK_EVERY)

    def _drive(self, attempt: str, stop: StopRequest) -> Failure:
        """Start a driver, wait for its end, and end whatever it has left; return what may have gone wrong."""
        spec = {
            "config": self.config.to_dict(),
            "launcher": replace(self.config, launcher=self.settings).to_dict()["launcher"],
            "output": str(self.place.path),
            "cwd": os.getcwd(),
            "about": dict(self.about),
            "launch": attempt,
            "began": self.began,
            "patience": self.patience,
        }
        with private_folder(attempt) as temporary, self._folder.log(DRIVER).open("ab") as log:
            mark = log.tell()
            arguments = [sys.executable, "-m", "orchestration.launchers.ray_driver", str(os.getpid())]
            with shielded():
                driver = subprocess.Popen(
                    arguments,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=ray_environment(self.settings, attempt, temporary),
                    start_new_session=True,
                )
            try:
                assert driver.stdin is not None
                with contextlib.suppress(BrokenPipeError), driver.stdin:
                    driver.stdin.write(json.dumps({**spec, "temporary": str(temporary)}).encode())
                self._watch(driver, stop)
            finally:
                if driver.poll() is None:
                    driver.kill()
                driver.wait()
        kill_session(driver.pid)
        self._show.copy()
        return Failure(_reason(driver.returncode, self._folder, mark), tried=driver.returncode != NOT_UP)

    def _watch(self, driver: subprocess.Popen[bytes], stop: StopRequest) -> None:
        """Wait for a driver's end, hand a request to stop on, and show what the leader says.

        Returns early where the workers have long said how they ended: without its head, Ray's driver may wait for ever.
        """
        asked, over = False, float("inf")
        while driver.poll() is None and time.monotonic() - over < LINGERS:
            if stop and not asked:
                self._folder.ask_to_stop(stop.signal_number)
                asked = True
            if over == float("inf") and (self.place.result.is_file() or self._folder.ends()):
                over = time.monotonic()
            if over == float("inf"):
                self.check()
            self._show.copy()
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(LOOK_EVERY)


def ray_environment(settings: LauncherSettings, launch: str, temporary: Path) -> dict[str, str]:
    """Return the environment of the driver, which Ray's own processes and the workers inherit.

    On one machine everything listens on loopback and asks for a token made for this launch. On an existing cluster the
    user's own RAY_AUTH_* settings hold.
    """
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *(os.path.abspath(path) for path in sys.path[:1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        MARK: launch,
        "PYTHONPATH": os.pathsep.join(path for path in dict.fromkeys(paths) if path),
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # Workers that import slowly, on a loaded machine or from a network folder, are not started over and over.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_prestart_worker_first_driver": "0",  # those have another environment than Ray Train asks for: never used
        "RAY_worker_niceness": "0",  # else any other process of the machine comes before the training
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    }
    if settings.address is None:
        environment |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Linux then uses 127.0.0.1 for every socket
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a head that is gone does not come back
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "TMPDIR": str(temporary),
        }
    return environment


def _reason(code: int, folder: LaunchFolder, mark: int) -> str:
    """Say why a driver ended, by the last error in the logs."""
    if code < 0:
        return f"the Ray driver was ended by {signal.Signals(-code).name}"
    with folder.log(DRIVER).open("rb") as file:
        file.seek(mark)
        lines = file.read()[-LAST_LINES:].decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if code == NOT_UP:
        return last[:300]
    return f"a worker failed ({last[:300]})" if last else f"the Ray driver ended with code {code}"


class _Tail:
    """Copies what is added to a file to the error stream, unless that is the file itself, as in a batch job.

    Args:
        path: the file; it need not exist. What it holds at the start is not shown.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0

    def copy(self) -> None:
        """Copy what is new."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
            self._at += len(data)
            if data and not _is_error_stream(file):
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()


def _is_error_stream(file: BinaryIO) -> bool:
    try:
        return os.path.sameopenfile(file.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # a stream in memory
        return False


def settings_of(spec: Mapping[str, Any]) -> LauncherSettings:
    """Return how a driver or worker is to use Ray."""
    return Config.from_dict({**spec["config"], "launcher": spec["launcher"]}).launcher
