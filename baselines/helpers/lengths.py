"""Stage lengths of a run: shares or steps, the rest going to the last stage."""

from __future__ import annotations

from collections.abc import Mapping

from baselines.stages import Share
from geta_core.errors import ConfigError


def lengths(total_steps: int, last: str, **shares: Share) -> dict[str, int]:
    """Return the length of each stage in steps, in order; the last gets what is left.

    Args:
        total_steps: of the run.
        last: name of the stage that takes the rest.
        shares: name -> fraction of the run (a number with a point) or steps (a whole number).

    Raises:
        ConfigError: when they do not fit.
    """
    found = {name: share if isinstance(share, int) else round(share * total_steps) for name, share in shares.items()}
    left = total_steps - sum(found.values())
    if left < 0:
        said = ", ".join(f"{name} {length}" for name, length in found.items())
        raise ConfigError([f"method's stages must fit the run's {total_steps} steps, but are {said}"])
    return {**found, last: left}


def require_steps(stages: Mapping[str, int], *names: str) -> None:
    """Refuse stages without a step where something must happen in them.

    Raises:
        ConfigError: naming them.
    """
    faults = [f"method.{name} must have at least one step, but gets none" for name in names if not stages[name]]
    if faults:
        raise ConfigError(faults)
