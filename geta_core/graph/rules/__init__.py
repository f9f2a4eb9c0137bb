"""Dependency rules of operations, one file per kind."""

from __future__ import annotations

from functools import cache


@cache
def install_all() -> None:
    """Enter every built-in rule once."""
    import geta_core.quantize.op  # noqa: F401  # defines the quantizer op that one rule names
    from geta_core.graph.rules import (
        along,
        composed,
        contraction,
        extremes,
        norms,
        pointwise,
        quantizers,
        recurrent,
        reductions,
        views,
        windows,
    )

    parts = (
        pointwise,
        contraction,
        views,
        norms,
        reductions,
        extremes,
        along,
        windows,
        recurrent,
        quantizers,
        composed,
    )
    for module in parts:
        module.install()
