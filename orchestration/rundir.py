"""The directory of a run: what lies in it, who may write it, and whether a run may go on in it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geta_core.errors import ConfigError
from orchestration.config import Config, decides
from orchestration.files import PARTIAL, write_json, write_text
from orchestration.owner import LOCK, owned
from orchestration.records import uncommitted
from orchestration.values import read_yaml, write_yaml

DEFAULT_ROOT = "runs"
LAUNCHER_FOLDER = "launcher"
"""Where a launcher and its workers leave word for each other."""
PATCH = "uncommitted.patch"
"""What the code differed in from its commit when the run began."""
SHOWN = 6
"""Differing keys that a message names."""


class RunDirectory:
    """Paths of one run.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.resolved = self.path / "resolved.yaml"
        self.environment = self.path / "environment.json"
        self.result = self.path / "result.json"
        self.artifact = self.path / "artifact"
        self.weights = self.path / "weights.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        """Return the directory that a configuration asks for."""
        if config.run.output is not None:
            return cls(Path(config.run.output).expanduser())
        parts = [config.task.name, config.model.name, config.method.name, f"s{config.run.seed}", config.digest()[:8]]
        return cls(Path(DEFAULT_ROOT) / re.sub(r"[^\w.-]+", "_", "-".join(parts)))

    def check(self, config: Config) -> None:
        """Check that the run may use this directory; nothing is left behind.

        Raises:
            ConfigError: when it cannot be written, belongs to something else or to another configuration, or lacks the
                checkpoint that ``run.resume=must`` asks for.
        """
        _check_writable(self.path)
        if config.run.resume == "must" and not any(self.checkpoints.glob("*.json")):
            raise ConfigError([f"run.resume=must needs a checkpoint, but {self.checkpoints} holds none"])
        if not self.path.is_dir() or not any(_counts(each) for each in self.path.iterdir()):
            return
        if config.run.resume == "never":
            raise ConfigError([f"run.resume=never needs a new run.output, but {self.path} holds files"])

        if not self.resolved.is_file():
            raise ConfigError([f"run.output must be a new directory or a run's, but {self.path} holds other files"])
        differing = differences(_flat(read_yaml(self.resolved)), config.deciding())
        if differing:
            shown = "; ".join(differing[:SHOWN]) + ("; ..." if len(differing) > SHOWN else "")
            raise ConfigError([f"{self.path} holds a run of another configuration ({shown}); change run.output"])

    def create(self, config: Config, about: Mapping[str, Any]) -> None:
        """Make the directory and write what the run is; a resumed run adds its own record.

        Args:
            config: the whole configuration.
            about: command, code, versions and machine of this attempt.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in self.path.glob(f".{self.artifact.name}.*"):  # of a process killed while it saved the model
            shutil.rmtree(unfinished, ignore_errors=True)
        if not self.resolved.exists():
            write_text(self.resolved, write_yaml(config.to_dict()))
            patch = uncommitted()
            if patch:
                write_text(self.path / PATCH, patch)
        repeat = shlex.join(["geta", "repeat", str(self.path)])
        write_json(self.environment, {"repeat": repeat, "attempts": [*self.attempts(), dict(about)]})

    def attempts(self) -> list[dict[str, Any]]:
        """Return the records of the attempts so far."""
        try:
            found = json.loads(self.environment.read_text(encoding="utf-8"))["attempts"]
        except (OSError, ValueError, KeyError):
            return []
        return list(found)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the directory; it is freed when this process ends, however it ends.

        Raises:
            GetaError: when another process has it.
        """
        with owned(self.path):
            yield


def _counts(path: Path) -> bool:
    """Whether a file says that a run lives here; a process killed at its very start leaves some that do not."""
    return path.name not in (LOCK, LAUNCHER_FOLDER) and path.suffix != PARTIAL


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which deciding keys changed."""
    return [
        f"{key}: {before.get(key, 'absent')!r} -> {now.get(key, 'absent')!r}"
        for key in sorted({*now, *(key for key in before if decides(key))})
        if before.get(key) != now.get(key)
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{group}.{key}": value
        for group, keys in tree.items()
        if isinstance(keys, Mapping)
        for key, value in keys.items()
    }


def _check_writable(path: Path) -> None:
    """Make a file where the directory will be, and remove everything that was made for it."""
    existing = path
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError([f"run.output={path} cannot be a directory: {existing} is a file"])
    made = [part for part in (path, *path.parents) if part != existing and existing in part.parents]
    try:
        for part in reversed(made):
            part.mkdir()
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError([f"run.output={path} cannot be written: {error.strerror}"]) from error
    finally:
        for part in made:
            if part.is_dir():
                os.rmdir(part)
