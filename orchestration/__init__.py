"""One run: models, tasks, loop, checkpoints, tracking.

``compose`` a configuration, then run it (``orchestration.run.run``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestration.compose import compose, load
    from orchestration.config import Config
    from orchestration.result import RunResult

__all__ = ["Config", "RunResult", "compose", "load"]

_HOMES = {
    "Config": "orchestration.config",
    "RunResult": "orchestration.result",
    "compose": "orchestration.compose",
    "load": "orchestration.compose",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that ``geta --help`` need not wait for torch."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
