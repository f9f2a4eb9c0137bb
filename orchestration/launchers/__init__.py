"""Where a run executes: one launcher per ``launcher.name``, all of the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestration.config import LauncherSettings
    from orchestration.launchers.base import Launcher


def launcher(settings: LauncherSettings) -> Launcher:
    """Return the launcher that the settings name."""
    if settings.name == "ray":
        from orchestration.launchers.ray import RayLauncher

        return RayLauncher()
    if settings.name == "slurm":
        from orchestration.launchers.slurm import SlurmLauncher

        return SlurmLauncher()
    from orchestration.launchers.local import LocalLauncher

    return LocalLauncher()
