"""Where the runs of a study execute: one pool per ``launcher.name``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.studies.definition import Definition
    from sweeps.studies.pools.base import Pool


def open_pool(name: str, definition: Definition) -> Pool:
    """Return the pool of a launcher."""
    if name == "ray":
        from sweeps.studies.pools.ray import RayPool

        return RayPool(definition)
    if name == "slurm":
        from sweeps.studies.pools.slurm import SlurmPool

        return SlurmPool(definition)
    from sweeps.studies.pools.local import LocalPool

    return LocalPool(definition)
