"""``metrics.jsonl``: every number of a run, one line per event, in the run directory.

The file is the truth. After a resume it is cut back to what the checkpoint knew. Lines that are then computed again get
the timestamps they had before, so that a tracker that was already sent them recognises them as the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestration.files import write_text
from orchestration.tracking.base import Line

JOURNAL = "metrics.jsonl"


class Journal:
    """Writes and reads ``metrics.jsonl``.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._replaced = folder / "metrics.replaced.jsonl"
        self._before: dict[tuple[str, int], Line] = {}

    def open_at(self, offset: int) -> None:
        """Cut the file back to ``offset`` bytes; what is cut is remembered for its timestamps."""
        kept = self.path.read_bytes() if self.path.exists() else b""
        cut = [*_lines(self._replaced), *_parse(kept[offset:])]
        self._before = {}
        for line in cut:  # the first time a line was written is the one that may have been sent
            self._before.setdefault((line.kind, line.step), line)
        if self._before:
            write_text(self._replaced, "".join(_dump(line) for line in self._before.values()))
        if len(kept) > offset or not self.path.exists():
            write_text(self.path, kept[:offset].decode())

    def append(
        self,
        kind: str,
        position: tuple[int, int],
        stage: str,
        metrics: Mapping[str, float],
        seconds: Mapping[str, float] | None = None,
    ) -> Line:
        """Write one line durably.

        Args:
            kind: "epoch", "stage" or "final".
            position: optimizer steps and epochs done.
            stage: name of the stage that the numbers belong to.
            metrics: the numbers.
            seconds: wall-clock numbers.

        Returns:
            The line, or the one written before it was cut away where its numbers are the same.
        """
        step, epoch = position
        now = time.time_ns() // 1_000_000
        line = Line(kind, step, epoch, stage, now, dict(metrics), dict(seconds or {}))
        before = self._before.get((kind, step))
        if before is not None and before.metrics == line.metrics:
            line = before
        with self.path.open("ab") as file:
            file.write(_dump(line).encode())
            file.flush()
            os.fsync(file.fileno())
        return line

    def offset(self) -> int:
        """Return the length of the file in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> list[Line]:
        """Return every line."""
        return list(_lines(self.path))

    def close(self) -> None:
        """Forget the lines that were cut away: the run is over."""
        self._replaced.unlink(missing_ok=True)


class Tail:
    """Reads the lines that were added to a file of lines since the last look.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self.count = 0
        """Lines read so far."""

    def read(self) -> list[Line]:
        """Return the new whole lines; one that is being written waits for the next look."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = list(_parse(whole))
        self.count += len(found)
        return found


def _dump(line: Line) -> str:
    return json.dumps(line.to_dict()) + "\n"


def _lines(path: Path) -> Iterator[Line]:
    if path.exists():
        yield from _parse(path.read_bytes())


def _parse(data: bytes) -> Iterator[Line]:
    for text in data.decode(errors="replace").splitlines():
        try:
            yield Line.from_dict(json.loads(text))
        except (ValueError, TypeError):  # the last line of a killed run may be half written
            continue
