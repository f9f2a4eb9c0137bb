"""Pictures of a run: bits per layer, channels kept per layer, and the training curves with the stages shaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.result import RunResult
from orchestration.tracking.base import Line

SHADES = {"warmup": "#dfe8f5", "projection": "#fdebd0", "joint": "#e5d5ee", "cooldown": "#dcefdc", "train": "#eeeeee"}


def draw(result: RunResult, lines: Sequence[Line], folder: Path) -> list[Path]:
    """Draw everything that the run has numbers for.

    Args:
        result: of the run.
        lines: of its journal.
        folder: receives PNG files.

    Returns:
        The files; none where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    title = f"{result.method}: {result.model} on {result.task}, seed {result.seed}"
    for name, plot in (("bits_per_layer", _bits), ("channels_per_layer", _channels), ("training", None)):
        figure = Figure(figsize=(10, 6), layout="constrained")
        figure.suptitle(title)
        if plot is not None:
            plot(figure, result.layers)
        else:
            _curves(figure, lines)
        figure.savefig(folder / f"{name}.png", dpi=110)
        drawn.append(folder / f"{name}.png")
    return drawn


def _bits(figure: Any, layers: Sequence[dict[str, Any]]) -> None:
    axes = figure.add_subplot()
    at = range(len(layers))
    axes.bar([x - 0.2 for x in at], [row["weight_bits"] for row in layers], 0.4, label="weights")
    axes.bar([x + 0.2 for x in at], [row["input_bits"] for row in layers], 0.4, label="inputs")
    axes.set_ylabel("bits (32 = float)")
    axes.legend()
    _name_layers(axes, layers)


def _channels(figure: Any, layers: Sequence[dict[str, Any]]) -> None:
    axes = figure.add_subplot()
    rows = [row for row in layers if row["dense_channels"]]
    axes.bar(range(len(rows)), [row["dense_channels"] for row in rows], color="#cccccc", label="dense")
    axes.bar(range(len(rows)), [row["channels"] for row in rows], 0.6, label="kept")
    axes.set_ylabel("output channels")
    axes.legend()
    _name_layers(axes, rows)


def _name_layers(axes: Any, layers: Sequence[dict[str, Any]]) -> None:
    axes.set_xticks(
        range(len(layers)), [row["name"].removesuffix(".weight") for row in layers], rotation=90, fontsize=8
    )
    axes.margins(x=0.01)


def _curves(figure: Any, lines: Sequence[Line]) -> None:
    epochs = [line for line in lines if line.kind == "epoch"]
    panels = (
        ("loss", ("train/loss", "val/loss")),
        ("accuracy", ("train/accuracy", "val/accuracy")),
        ("share", ("group_sparsity", "relative_bops")),
        ("bits", ("weight_bits", "activation_bits")),
    )
    for axes, (label, keys) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
        _shade(axes, lines)
        for key in keys:
            points = [(line.step, line.metrics[key]) for line in epochs if key in line.metrics]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=key)
        axes.set_ylabel(label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.supxlabel("optimizer steps")


def _shade(axes: Any, lines: Sequence[Line]) -> None:
    start = 0
    for line in lines:
        if line.kind == "stage":
            axes.axvspan(start, line.step, color=SHADES.get(line.stage, "#f4f4f4"), zorder=0)
            axes.text(
                (start + line.step) / 2, 1.0, line.stage, transform=axes.get_xaxis_transform(), ha="center", fontsize=7
            )
            start = line.step
