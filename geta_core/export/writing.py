"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from geta_core.errors import ArtifactError


def written(path: Path, data: bytes | Callable[[Path], None], what: str) -> None:
    """Write a file under a temporary name, sync and rename it.

    Args:
        path: of the file.
        data: its content, or a function that writes it to a path.
        what: for the message.

    Raises:
        ArtifactError: if it cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        if callable(data):
            data(partial)
        else:
            partial.write_bytes(data)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(f"{what}: cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
