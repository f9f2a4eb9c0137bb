"""Bits and kept channels of every layer, side by side over the cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from orchestration.result import RunResult


def _kept(row: Mapping[str, Any]) -> float:
    return 100 * row["channels"] / row["dense_channels"] if row["dense_channels"] else math.nan


PANELS: tuple[tuple[str, Callable[[Mapping[str, Any]], float]], ...] = (
    ("weight bits", lambda row: float(row["weight_bits"])),
    ("input bits", lambda row: float(row["input_bits"])),
    ("channels kept, %", _kept),
)


def drawable(results: Mapping[str, Mapping[int, RunResult]]) -> bool:
    """Whether every run has rows of layers, and of the same ones."""
    names = {
        tuple(row["name"] for row in each.layers) for own in results.values() for each in own.values() if _has(each)
    }
    return len(names) == 1 and all(_has(each) for own in results.values() for each in own.values())


def _has(result: RunResult) -> bool:
    return isinstance(result.layers, list) and bool(result.layers)


def plot(figure: Any, results: Mapping[str, Mapping[int, RunResult]]) -> None:
    """Draw three panels of cells by layers: means over the seeds, the number in the field where there is room."""
    names = [row["name"].removesuffix(".weight") for row in next(iter(next(iter(results.values())).values())).layers]
    for axes, (title, read) in zip(figure.subplots(len(PANELS), 1, sharex=True), PANELS, strict=True):
        table = np.array(
            [np.mean([[read(row) for row in each.layers] for each in own.values()], axis=0) for own in results.values()]
        )
        top = 100.0 if "%" in title else min(32.0, max(8.0, float(np.nanmax(table, initial=8.0))))
        image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=top)
        figure.colorbar(image, ax=axes, pad=0.01)
        axes.set_yticks(range(len(results)), list(results), fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        if len(names) <= 24:
            for (row, column), value in np.ndenumerate(table):
                if np.isfinite(value):
                    dark = value < 0.6 * top
                    axes.text(
                        column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color="w" if dark else "k"
                    )
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
