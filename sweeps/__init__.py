"""Many runs: comparisons, ablations, studies, tables and figures; and the command line that joins everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.ablations import Ablation
    from sweeps.studies.study import Study, StudyTrial
    from sweeps.tables import Table

__all__ = ["Ablation", "Study", "StudyTrial", "Table"]

_HOMES = {
    "Ablation": "sweeps.ablations",
    "Study": "sweeps.studies.study",
    "StudyTrial": "sweeps.studies.study",
    "Table": "sweeps.tables",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that ``geta --help`` need not wait for torch."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
