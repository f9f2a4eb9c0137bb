"""How often a run may be started again by itself, and when that is no use any more.

The count is kept in the run directory, so that it also holds where each start is another process, as under a scheduler
that requeues jobs. A new launch by the user (another ``launch``) starts a new count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from geta_core.errors import GetaError
from orchestration.files import write_json

IDLE = 2
"""Attempts in a row that may end where they began."""


class Requeues:
    """The attempts of one launch.

    Args:
        path: file that holds them.
        launch: names the launch, such as a scheduler's job id.
        limit: how often the run may be started again.
    """

    def __init__(self, path: Path, launch: str, limit: int) -> None:
        self._path, self._launch, self._limit = path, launch, limit
        if self._read().get("launch") != launch:
            write_json(path, {"launch": launch, "attempts": []})

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Attempts that have ended: the steps at which they began and ended, and why they ended."""
        return list(self._read().get("attempts", []))

    def ended(self, began: int, step: int, reason: str, tried: bool = True) -> None:
        """Count an attempt that ended before the run did.

        Args:
            began: steps that the checkpoint held when it began.
            step: steps that the last checkpoint holds now.
            reason: why it ended.
            tried: whether the run had a chance to make progress; it has none where the workers could not be started.

        Raises:
            GetaError: when the run is not to be started again: too often already, or without any progress.
        """
        attempts = [*self.attempts, {"began": began, "ended": step, "reason": reason, "tried": tried}]
        write_json(self._path, {"launch": self._launch, "attempts": attempts})
        idle = [each for each in attempts if each["tried"]][-IDLE:]
        if tried and len(idle) == IDLE and all(each["ended"] <= each["began"] for each in idle):
            raise GetaError(
                f"the run made no progress in {IDLE} attempts: each ended at step {step}, where it began, so it is not "
                f"started again; last reason: {reason}; lower run.checkpoint_every if the time did not suffice"
            )
        if len(attempts) > self._limit:
            raise GetaError(
                f"the run was started again {self._limit} times, as often as allowed, and ended at step {step}; "
                f"last reason: {reason}; the same command goes on from there"
            )

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def saved_step(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint in a folder, 0 where there is none."""
    names = sorted(path.stem for path in checkpoints.glob("step-*.json"))
    return int(names[-1].rpartition("-")[2]) if names else 0
