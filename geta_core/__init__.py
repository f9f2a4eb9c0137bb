"""GETA: joint structured pruning and mixed-precision quantization-aware training (arXiv:2502.16638)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geta_core.accounting import Measurement
    from geta_core.artifact import load
    from geta_core.budget import Bops, Bytes, Latency
    from geta_core.config import CompressionConfig
    from geta_core.errors import (
        ArtifactError,
        ConfigError,
        GetaError,
        PruningError,
        ScheduleError,
        UnsupportedOpError,
    )
    from geta_core.finishing import Compressed, finish
    from geta_core.graph import Group, register_rule
    from geta_core.inspection import Inspection, inspect
    from geta_core.measuring import measure
    from geta_core.prepared import Prepared, prepare
    from geta_core.qasso import QASSO, Schedule
    from geta_core.quantize import QuantSite, set_kernel
    from geta_core.report import Report

_HOMES = {
    "geta_core.accounting": ("Measurement",),
    "geta_core.artifact": ("load",),
    "geta_core.budget": ("Bops", "Bytes", "Latency"),
    "geta_core.config": ("CompressionConfig",),
    "geta_core.errors": (
        "ArtifactError",
        "ConfigError",
        "GetaError",
        "PruningError",
        "ScheduleError",
        "UnsupportedOpError",
    ),
    "geta_core.finishing": ("Compressed", "finish"),
    "geta_core.graph": ("Group", "register_rule"),
    "geta_core.inspection": ("Inspection", "inspect"),
    "geta_core.measuring": ("measure",),
    "geta_core.prepared": ("Prepared", "prepare"),
    "geta_core.qasso": ("QASSO", "Schedule"),
    "geta_core.quantize": ("QuantSite", "set_kernel"),
    "geta_core.report": ("Report",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "QASSO",
    "ArtifactError",
    "Bops",
    "Bytes",
    "Compressed",
    "CompressionConfig",
    "ConfigError",
    "GetaError",
    "Group",
    "Inspection",
    "Latency",
    "Measurement",
    "Prepared",
    "PruningError",
    "QuantSite",
    "Report",
    "Schedule",
    "ScheduleError",
    "UnsupportedOpError",
    "finish",
    "inspect",
    "load",
    "measure",
    "prepare",
    "register_rule",
    "set_kernel",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import geta_core`` is instant."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'geta_core' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
