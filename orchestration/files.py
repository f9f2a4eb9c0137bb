"""Files that are either the old ones or the new ones, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from geta_core.errors import GetaError

PARTIAL = ".partial"
"""Ending of a file that is being written."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when a disk, or the user's share of it, is full."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` when the block ends, and vanishes when it fails."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON at once."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where the file is not there, or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def room_for(folder: Path, then: str) -> Iterator[None]:
    """Say in one line that a disk is full, whichever write found that out.

    Args:
        folder: what is written to.
        then: what happens once there is room again.

    Raises:
        GetaError: in place of the error of the write.
    """
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(existing).free
        full = f"there must be room in {folder}, but its disk is full ({free:,} bytes free)"
        raise GetaError(f"{full}; {then}") from error


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk: itself, or what it was raised from or during.

    Libraries that write from C++ or Rust pass the system's words on, not its number.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(number) in str(error) for number in FULL):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
