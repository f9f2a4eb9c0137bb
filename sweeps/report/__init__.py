"""One page about many runs."""

from sweeps.report.page import report

__all__ = ["report"]
