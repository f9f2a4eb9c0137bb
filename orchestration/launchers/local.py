"""``launcher=local``: one worker, this process."""

from __future__ import annotations

from orchestration.config import Config
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from orchestration.signals import stop_requests


class LocalLauncher:
    """Runs in this process."""

    def launch(self, config: Config, place: RunDirectory) -> RunResult:
        """Execute the run here."""
        from orchestration.run import attempt

        with stop_requests() as stop:
            result = attempt(config, place, stop)
        assert result is not None  # a worker alone leads
        return result
