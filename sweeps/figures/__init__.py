"""Pictures of many runs: trade-offs, layers, stages and differences, as PNG files."""

from sweeps.figures.study import draw_study

__all__ = ["draw_study"]
