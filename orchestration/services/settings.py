"""What ``geta services`` brings up, and where."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from baselines.schema import Bounds, check_options
from geta_core.errors import ConfigError

HOST = "127.0.0.1"
"""Nothing listens anywhere else; other machines come through ssh -L."""
FILE = "services.yaml"
Port = Annotated[int, Bounds(1024, 65535)]


@dataclass(frozen=True, kw_only=True)
class ServicesSettings:
    """A PostgreSQL server and an MLflow server that keeps its numbers in it."""

    folder: str = "services"
    """Folder of the servers' data, logs and password; made where it does not exist."""
    postgres_port: Port = 5532
    """Port of PostgreSQL."""
    mlflow_port: Port = 5000
    """Port of the MLflow server."""
    workers: Annotated[int, Bounds(1)] = 2
    """Processes of the MLflow server."""
    role: str = "geta"
    """PostgreSQL role that owns the database."""
    database: str = "mlflow"
    """Database in PostgreSQL."""
    password_file: str | None = None
    """File with the role's password, readable by its owner alone; null makes one in the folder."""
    system_user: str | None = None
    """User that PostgreSQL runs as when the command is given by root, which it refuses; null: postgres, else nobody."""

    def __post_init__(self) -> None:
        faults = [
            f"services.{key} must consist of letters, digits and _, but got {value!r}"
            for key, value in (("role", self.role), ("database", self.database))
            if not (value.isascii() and value.isidentifier())
        ]
        if self.postgres_port == self.mlflow_port:
            faults.append(
                f"services.postgres_port and services.mlflow_port must differ, but both are {self.mlflow_port}"
            )
        if self.system_user is not None and _user(self.system_user) is None:
            faults.append(f"services.system_user={self.system_user} is no user of this machine")
        if faults:
            raise ConfigError(faults)

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder).expanduser().absolute()

    @property
    def address(self) -> str:
        """Of the MLflow server, as ``tracker.uri`` takes it."""
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def store(self) -> str:
        """Of the database; the password is not in it, libpq reads it from PGPASSFILE."""
        return f"postgresql+psycopg://{self.role}@{HOST}:{self.postgres_port}/{self.database}"

    def postgres_user(self) -> pwd.struct_passwd | None:
        """Return the user that PostgreSQL runs as; None means the one who gives the command.

        Raises:
            ConfigError: when root gives the command and there is no other user.
        """
        if os.geteuid() != 0:
            return None
        names = [self.system_user] if self.system_user else ["postgres", "nobody"]
        found = next((user for user in map(_user, names) if user is not None and user.pw_uid != 0), None)
        if found is None:
            raise ConfigError(["PostgreSQL refuses to run as root; name another user: services.system_user=NAME"])
        return found


def read_settings(arguments: Sequence[str], file: str | None) -> ServicesSettings:
    """Read ``services.yaml`` (where there is one) and ``services.key=value`` arguments.

    Raises:
        ConfigError: naming every fault.
    """
    from orchestration.values import read_yaml, split_arguments

    faults: list[str] = []
    values: dict[str, Any] = {}
    if file is not None or Path(FILE).is_file():
        read = read_yaml(Path(file or FILE))
        inner = read.get("services", read)
        values = dict(inner) if isinstance(inner, Mapping) else {}
        if not isinstance(inner, Mapping):
            faults.append(f"services in {file or FILE} must be a mapping, but got {inner!r}")
    choices, keys = split_arguments(arguments, ["services"], faults)
    faults.extend(f"services={name}: services has keys only, such as services.folder=DIR" for name in choices.values())
    for key, value in keys.items():
        group, _, name = key.partition(".")
        if group == "services":
            values[name] = value
        else:
            faults.append(f"unknown key {key}; keys begin with services.")
    checked = check_options(ServicesSettings, values, "services.", faults)
    try:
        found = ServicesSettings(**checked)
    except ConfigError as error:
        faults.extend(error.faults)
    if faults:
        raise ConfigError(faults)
    return found


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
