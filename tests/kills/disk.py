"""A small disk that fills up while a training writes its checkpoints to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEGABYTE = 2**20
FILLER = "filler"


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system in memory at a folder for the block (needs the right to mount)."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, left: int) -> None:
    """Write a file that leaves so many bytes of a disk free, at most."""
    import shutil

    with (place / FILLER).open("ab") as file:
        while (free := shutil.disk_usage(place).free) > left:
            file.write(bytes(min(free - left, MEGABYTE)))
            file.flush()


def make_room(place: Path) -> None:
    """Remove that file."""
    (place / FILLER).unlink()
