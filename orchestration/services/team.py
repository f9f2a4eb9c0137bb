"""PostgreSQL and MLflow's server together: up, down, status; each can be asked for again at any time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass

from geta_core.errors import ConfigError, GetaError
from orchestration.services.postgres import Postgres
from orchestration.services.processes import SERVER, Background, answers, is_free, mlflow_command, wait_for
from orchestration.services.settings import ServicesSettings
from orchestration.tracking.store import file_lock

MIGRATION_SECONDS = 300.0


@dataclass(frozen=True)
class State:
    """What runs."""

    postgres: bool
    mlflow: bool
    pid: int | None
    """Of the MLflow server."""


class Team:
    """The services of one folder.

    Args:
        settings: checked.
    """

    def __init__(self, settings: ServicesSettings) -> None:
        self._settings = settings
        self._postgres = Postgres(settings)
        self._log = settings.path / "mlflow.log"
        self._mlflow = Background(settings.path / "mlflow.pid", self._log)

    def up(self) -> list[str]:
        """Bring up what is down; return what was started.

        Raises:
            GetaError: when something does not start; what was started before stays.
        """
        if importlib.util.find_spec("psycopg") is None:
            raise ConfigError(["MLflow needs psycopg for PostgreSQL; pip install 'geta[services]'"])
        settings = self._settings
        settings.path.mkdir(parents=True, exist_ok=True)
        with file_lock(settings.path / ".lock"):
            started = ["PostgreSQL"] if self._postgres.up() else []
            if self._mlflow.pid() is not None and answers(settings.address):
                return started
            self._mlflow.stop()
            if not is_free(settings.mlflow_port):
                port = settings.mlflow_port
                raise ConfigError([f"services.mlflow_port={port} is taken by another process; choose another one"])
            self._migrate()
            artifacts = settings.path / "artifacts"
            artifacts.mkdir(exist_ok=True)
            command = mlflow_command(settings.store, settings.mlflow_port, settings.workers, artifacts)
            server = self._mlflow.start(command, self._environment())
            try:
                wait_for(settings.address, server.poll)
            except GetaError as error:
                self._mlflow.stop()
                raise GetaError(f"{error}: {self._log}") from error
            return [*started, "MLflow"]

    def down(self) -> list[str]:
        """Stop what runs; return what was stopped."""
        if not self._settings.path.is_dir():
            return []
        with file_lock(self._settings.path / ".lock"):
            stopped = ["MLflow"] if self._mlflow.stop() else []
            return [*stopped, *(["PostgreSQL"] if self._postgres.down() else [])]

    def state(self) -> State:
        """Return what runs."""
        pid = self._mlflow.pid()
        return State(self._postgres.is_up(), pid is not None and answers(self._settings.address), pid)

    def _environment(self) -> dict[str, str]:
        return {**SERVER, "PGPASSFILE": str(self._postgres.passfile)}

    def _migrate(self) -> None:
        """Make or migrate MLflow's tables before anything else opens them."""
        import os

        command = [sys.executable, "-m", "mlflow", "db", "upgrade", self._settings.store]
        with self._log.open("ab") as log:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=MIGRATION_SECONDS, check=False,
                env={**os.environ, **self._environment()}, cwd=self._settings.path,
            )  # fmt: skip
        if done.returncode:
            raise GetaError(f"MLflow's tables could not be made; {self._log} says why")
