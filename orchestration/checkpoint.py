"""Checkpoints on disk: complete or not there, checked when read, the last good one taken.

Each is two files: the state (``torch.save``) and a manifest with its checksum, written after it. A state without a
manifest is an interrupted write and counts for nothing.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geta_core.errors import ArtifactError
from orchestration.files import PARTIAL, atomic_file, sha256, write_json

KEEP = 2
"""Checkpoints that stay: the newest, and the one before it in case that one is damaged."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
        state: what was saved, on the CPU.
        path: its file.
        damaged: one sentence for each newer checkpoint that could not be used.
    """

    state: dict[str, Any]
    path: Path
    damaged: tuple[str, ...]


class CheckpointStore:
    """The checkpoints of one run, in one folder.

    Args:
        folder: made when the first checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write a checkpoint durably, then remove those that are no longer needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}.pt"
        with atomic_file(path) as file:
            torch.save(state, file)
        write_json(_manifest(path), {"step": step, "bytes": path.stat().st_size, "sha256": sha256(path)})
        self._clean(path)
        return path

    def last(self) -> Path | None:
        """Return the file of the newest checkpoint, unchecked."""
        paths = self._paths()
        return paths[0] if paths else None

    def restore(self) -> Restored | None:
        """Return the newest checkpoint that is whole; None where none was ever written.

        Raises:
            ArtifactError: when there are checkpoints and none is whole.
        """
        damaged: list[str] = []
        for path in self._paths():
            try:
                return Restored(_read(path), path, tuple(damaged))
            except ArtifactError as error:
                damaged.append(str(error))
        if damaged:
            raise ArtifactError(f"no usable checkpoint in {self.folder}: {'; '.join(damaged)}; use another run.output")
        return None

    def read(self, name: str) -> Restored:
        """Return the checkpoint of this file name.

        Raises:
            ArtifactError: when it is not whole.
        """
        path = self.folder / name
        return Restored(_read(path), path, ())

    def _paths(self) -> list[Path]:
        manifests = sorted(self.folder.glob("step-*.json"), reverse=True)
        return [manifest.with_suffix(".pt") for manifest in manifests]

    def _clean(self, newest: Path) -> None:
        kept = {newest, *[path for path in self._paths() if path <= newest][:KEEP]}
        for manifest in self.folder.glob("step-*.json"):
            if manifest.with_suffix(".pt") not in kept:
                manifest.unlink(missing_ok=True)
        for state in self.folder.glob("step-*.pt"):
            if state not in kept:
                state.unlink(missing_ok=True)
        for partial in self.folder.glob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_manifest(path).read_text(encoding="utf-8"))
        size, digest = manifest["bytes"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{_manifest(path).name} is damaged") from error
    if not path.is_file():
        raise ArtifactError(f"{path.name} is missing")
    if path.stat().st_size != size:
        raise ArtifactError(f"{path.name} is truncated ({path.stat().st_size} of {size} bytes)")
    if sha256(path) != digest:
        raise ArtifactError(f"{path.name} was altered (its sha256 is not the one written with it)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ArtifactError(f"{path.name} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, dict):
        raise ArtifactError(f"{path.name} holds no run state")
    return state
