"""The process that owns Ray for a study: ``python -m sweeps.studies.pools.ray_server STUDY_FOLDER``."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from orchestration.files import write_text
from orchestration.launchers.processes import private_folder
from orchestration.owner import alive, owned, show_life
from sweeps.studies.attempts import Attempt, Attempts
from sweeps.studies.pools.base import log_of, worker_command, worker_environment
from sweeps.studies.pools.ray import FOLDER, STOP, UP, settings_of

LOOK_EVERY = 0.2
PATIENCE = 300.0
"""Seconds without a coordinator and without a task after which the server leaves."""


def main(arguments: list[str]) -> int:
    """Serve a study until it is over."""
    study = Path(arguments[0])
    folder = study / FOLDER
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with owned(folder):
        told = settings_of(folder)
        launch = secrets.token_hex(8)
        with private_folder(launch) as temporary:
            _join(told, launch, temporary)
            write_text(folder / UP, launch)
            try:
                Server(study, told).serve()
            finally:
                import ray

                ray.shutdown()
    return 0


def _join(told: Any, launch: str, temporary: Path) -> None:
    """Bring up Ray, or join the cluster at the address; its processes carry the mark of the launch."""
    from orchestration.config import LauncherSettings
    from orchestration.launchers.ray import ray_environment
    from orchestration.launchers.ray_driver import join, require_room

    settings = LauncherSettings(**{**told["launcher"], "setup": tuple(told["launcher"]["setup"])})
    os.environ.update(ray_environment(settings, launch, temporary))
    join(asdict(replace(settings, workers=int(told["parallel"]))), str(temporary))
    import ray

    require_room(settings, [node["Resources"] for node in cast(Any, ray).nodes() if node["Alive"]])


class Server:
    """Turns marks into tasks.

    Args:
        study: folder of the study.
        told: what the coordinator said.
    """

    def __init__(self, study: Path, told: Any) -> None:
        import ray

        self._study, self._folder = study, study / FOLDER
        self._attempts = Attempts(study)
        self._tasks: dict[Any, Attempt] = {}
        launcher = told["launcher"]
        self._task = cast(Any, ray).remote(
            num_cpus=launcher["cpus_per_worker"], num_gpus=launcher["gpus_per_worker"], max_retries=0
        )(run_worker)

    def serve(self) -> None:
        """Work until the study is over, or nobody coordinates it any more."""
        import ray

        idle = time.monotonic()
        while True:
            self._submit()
            if self._tasks:
                done, _ = cast(Any, ray).wait(list(self._tasks), timeout=LOOK_EVERY)
                for each in done:
                    self._over(each)
                idle = time.monotonic()
            else:
                time.sleep(LOOK_EVERY)
            show_life(self._folder)
            abandoned = time.monotonic() - idle > PATIENCE and not alive(self._study)
            if not self._tasks and ((self._folder / STOP).exists() or abandoned):
                return

    def _submit(self) -> None:
        known = set(self._tasks.values())
        for attempt in self._marks():
            if attempt in known:
                continue
            if self._attempts.claimed(attempt):  # of an earlier server, whose Ray is gone
                if not self._attempts.lives(attempt):
                    self._unmark(attempt)
                continue
            self._tasks[self._task.remote(str(self._study), attempt.slot, attempt.number)] = attempt

    def _over(self, task: Any) -> None:
        """Take away the mark of an attempt; its worker has said how it ended, or is gone."""
        import ray

        attempt = self._tasks.pop(task)
        try:
            cast(Any, ray).get(task)
        except Exception as error:  # noqa: BLE001 - Ray raises plain exceptions: a node or a worker of Ray's died
            sys.stderr.write(f"{attempt}: {' '.join(str(error).split())[:300]}\n")
        self._unmark(attempt)

    def _marks(self) -> Iterator[Attempt]:
        for path in sorted(self._folder.glob("*.task")):
            slot, _, number = path.stem.partition("-")
            yield Attempt(int(slot), int(number))

    def _unmark(self, attempt: Attempt) -> None:
        with suppress(FileNotFoundError):
            (self._folder / f"{attempt}.task").unlink()


def run_worker(study: str, slot: int, number: int) -> int:
    """Start a worker where Ray has put this task, and wait for its end; it dies with this process."""
    folder, attempt = Path(study), Attempt(slot, number)
    spec = Attempts(folder).spec(attempt)
    with log_of(spec).open("ab") as log:
        return subprocess.run(
            worker_command(folder, attempt, os.getpid()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=spec["cwd"],
            env=worker_environment(spec),
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
