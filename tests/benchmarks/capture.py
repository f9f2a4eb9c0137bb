"""Time to capture a model and find its groups, and how it grows with the size of the graph."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph import ExampleInputs, GroupGraph, capture
from orchestration.models.registry import build, example_inputs
from tests.benchmarks.bounds import Row, row
from tests.benchmarks.clock import Clock, Spread

DEPTHS = (3, 6, 12, 24)


def _example(name: str, **options: int) -> tuple[nn.Module, Tensor]:
    (x,) = example_inputs(name, 2, small=False, **options)
    return build(name, **options), x


def seconds(model: nn.Module, x: Tensor) -> tuple[float, int]:
    """Return the CPU seconds of capture and groups for a quantized model, and the nodes of its graph."""
    config = geta.CompressionConfig(activation_bits=(4, 8))
    prepared = geta.prepare(model, x, config)
    clock, inputs = Clock(torch.device("cpu")), ExampleInputs.of(x)
    found: list[GroupGraph] = []

    def run() -> None:
        found.append(GroupGraph(capture(model, inputs), config, prepared.model))

    taken = clock.seconds(run)
    return taken, len(found[0].capture.graph.nodes)


def capture_rows() -> list[Row]:
    """Measure the nets that have a bound, and the released code's two beside them."""
    cases: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
        "resnet50": lambda: _example("resnet50"),
        "bert": lambda: _example("bert"),
        "resnet56": lambda: _example("resnet56"),
        "bert2": lambda: _example("bert", depth=2),
    }
    rows = []
    for name, make in cases.items():
        times, nodes = [], 0
        for _ in range(2 if name in ("resnet50", "bert") else 1):
            taken, nodes = seconds(*make())
            times.append(taken)
        text = "capture + groups, W+A quantized"
        rows.append(row("capture", name, text, Spread.of(times), device="cpu", unit="s", note=f"{nodes} nodes"))
    return [*rows, linear_row()]


def linear_row() -> Row:
    """Return the exponent e of seconds ~ nodes^e over encoders that differ in depth only, by least squares."""
    points = []
    for depth in DEPTHS:
        taken, nodes = seconds(*_example("bert_layers", depth=depth, width=192, num_heads=12, feedforward=768))
        points.append((math.log(nodes), math.log(taken)))
    x, y = zip(*points, strict=True)
    middle = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - middle[0]) * (b - middle[1]) for a, b in points) / sum((a - middle[0]) ** 2 for a in x)
    note = ", ".join(f"{math.exp(a):.0f} nodes {math.exp(b):.2f} s" for a, b in points)
    text = f"growth: e in seconds ~ nodes^e, {', '.join(map(str, DEPTHS))} layers"
    return row("capture/linear", "bert", text, Spread(slope, slope, slope), device="cpu", unit="", note=note)
