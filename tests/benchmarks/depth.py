"""Time to capture a residual net and find its groups against its depth, as a table, a record and a picture.

Run ``OMP_NUM_THREADS=1 python -m tests.benchmarks.depth`` to measure again and rewrite ``docs/pictures/depth.svg`` and
its record. torch.export's own share is a curve of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph import ExampleInputs, GroupGraph
from geta_core.graph.capture import exported, read
from tests.benchmarks.clock import Clock
from tests.benchmarks.origin import origin

DEPTHS = (10, 30, 100, 300, 1000)
DOCS = Path(__file__).parents[2] / "docs"
PICTURE, RECORD = DOCS / "pictures" / "depth.svg", DOCS / "records" / "depth.json"
PARTS = {"export": "torch.export", "read": "reading its graph", "groups": "groups"}


@dataclass(frozen=True)
class Point:
    """CPU seconds at one depth."""

    blocks: int
    nodes: int
    export: float
    read: float
    groups: float


class Block(nn.Module):
    """Two convolutions with batch norm and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first, self.second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add to ``x`` [N, width, H, W]."""
        return torch.relu(x + self.second(self.two(torch.relu(self.first(self.one(x))))))


def residual(blocks: int, width: int = 8) -> nn.Module:
    """Return a residual classifier of the given depth."""
    body = nn.Sequential(*(Block(width) for _ in range(blocks)))
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


def measured(blocks: int) -> Point:
    """Measure one depth."""
    model, inputs = residual(blocks).eval(), ExampleInputs.of(torch.randn(2, 3, 8, 8))
    config = geta.CompressionConfig(weight_bits=None)
    clock = Clock(torch.device("cpu"))
    program = exported(model, inputs)
    export = clock.seconds(lambda: exported(model, inputs))
    started = clock.now()
    captured = read(model, program)
    middle = clock.now()
    GroupGraph(captured, config, model)
    return Point(blocks, len(captured.graph.nodes), export, middle - started, clock.now() - middle)


def exponent(points: Sequence[Point], part: str) -> float:
    """Return e of seconds ~ nodes^e by least squares over points."""
    x = [math.log(point.nodes) for point in points]
    y = [math.log(getattr(point, part)) for point in points]
    a, b = sum(x) / len(x), sum(y) / len(y)
    return sum((u - a) * (v - b) for u, v in zip(x, y, strict=True)) / sum((u - a) ** 2 for u in x)


def draw(points: Sequence[Point], path: Path) -> None:
    """Write the picture: seconds over blocks, both logarithmic, with a line of slope 1."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "depth"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    blocks = [point.blocks for point in points]
    for part, label in PARTS.items():
        seconds = [getattr(point, part) for point in points]
        axes.loglog(blocks, seconds, marker="o", label=f"{label}, e = {exponent(points[1:], part):.2f}")
    last = points[-1]
    axes.loglog(blocks, [last.groups * b / last.blocks for b in blocks], "k:", label="linear")
    axes.set(
        xlabel="residual blocks", ylabel="CPU seconds", title="Capture and groups against depth: seconds ~ nodes^e"
    )
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def record(points: Sequence[Point], path: Path) -> None:
    """Write what was measured, where and with what."""
    exponents = {part: round(exponent(points[1:], part), 3) for part in PARTS}
    found = {"points": [asdict(point) for point in points], "exponents": exponents, "environment": origin()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Measure, print a table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    points = []
    for blocks in options.depths:
        points.append(measured(blocks))
        point = points[-1]
        seconds = ", ".join(f"{label} {getattr(point, part):.2f} s" for part, label in PARTS.items())
        sys.stdout.write(f"{blocks:5} blocks {point.nodes:6} nodes: {seconds}\n")
        sys.stdout.flush()
    record(points, options.record)
    draw(points, options.picture)


if __name__ == "__main__":
    main()
