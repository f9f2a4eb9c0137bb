"""``python -m tests.benchmarks.budgets --out FILE``: five counted budgets and two of the clock, on two nets.

Every run goes through all stages of QASSO on the digits. What a counted budget (BOPs, bytes) ends at is read from the
report; what one of the clock ends at is timed three times, in turn with the dense model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import geta_core as geta
from geta_core.accounting.latency import forward_seconds
from geta_core.budget import TOLERANCE, Budget
from geta_core.clocked_budget import REPEATS
from geta_core.graph import ExampleInputs
from geta_core.slim.verify import without_input_quantizers
from orchestration.files import write_text
from orchestration.models import build
from orchestration.tasks.base import Placement
from orchestration.tasks.digits import Digits
from tests.benchmarks.origin import origin

STEPS, LR = 114, 0.05
"""Training steps (six epochs) and the learning rate."""
NETS: dict[str, dict[str, Any]] = {"resnet20": {}, "vgg7": {"width": 32, "hidden": 128}}
COUNTED: dict[str, tuple[Budget, ...]] = {
    "resnet20": (
        geta.Bops(0.01),
        geta.Bops(0.03),
        geta.Bops(0.1, activations=False),
        geta.Bytes(60_000),
        geta.Bytes(30_000),
    ),
    "vgg7": (
        geta.Bops(0.004),
        geta.Bops(0.02),
        geta.Bops(0.08, activations=False),
        geta.Bytes(120_000),
        geta.Bytes(50_000),
    ),
}
SHARES, BATCH = (0.7, 0.5), 64
"""Of the dense model's seconds for a batch, as budgets."""


def fresh(net: str) -> nn.Module:
    """A net for the digits."""
    return build(net, **NETS[net], num_classes=10, in_channels=1)


def trained(net: str, budget: Budget) -> tuple[nn.Module, geta.Compressed, float]:
    """The dense model, the finished one, and its accuracy on the test split."""
    task = Digits()
    task.setup(0, Placement(torch.device("cpu")))
    torch.manual_seed(0)
    model, dense = fresh(net), fresh(net)
    prepared = geta.prepare(
        model.train(),
        task.calibration_batches(1)[0],
        geta.CompressionConfig(budget=budget, learn_exponent=False),
        calibration=task.calibration_batches(4),
    )
    schedule = geta.Schedule.fractions(STEPS, warmup=0.1, projection=0.2, joint=0.3, cooldown=0.4)
    optimizer = geta.QASSO(prepared, torch.optim.SGD, schedule=schedule, lr=LR, momentum=0.9, lr_quant=1e-3)
    for step in range(STEPS):
        epoch, at = divmod(step, task.steps_per_epoch())
        images, labels = next(task.train_batches(epoch, at))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    compressed = geta.finish(prepared)
    return dense, compressed, task.evaluate(compressed.model, "test")["accuracy"]


def ended(spent: float, budget: Budget) -> dict[str, Any]:
    """Where a run ended, and whether that is at or below the budget and close to it."""
    share = spent / budget.limit
    met = 1 - TOLERANCE <= share <= 1
    return {"unit": budget.unit, "budget": budget.limit, "spent": spent, "share": share, "met": met}


def counted(net: str, budget: Budget) -> dict[str, Any]:
    """A run under a budget of BOPs or bytes."""
    _, compressed, accuracy = trained(net, budget)
    report = compressed.report
    spent = report.bytes if isinstance(budget, geta.Bytes) else report.relative_bops
    return {"net": net, **ended(spent, budget), **_numbers(compressed, accuracy)}


def clocked(net: str, share: float) -> dict[str, Any]:
    """A run under a share of the dense model's seconds."""
    task = Digits()
    task.setup(0, Placement(torch.device("cpu")))
    example = ExampleInputs.of(task.calibration_batches(2)[1])
    limit = share * statistics.median(forward_seconds(fresh(net), example, BATCH, REPEATS).median for _ in range(3))
    budget = geta.Latency(limit, batch=BATCH)
    dense, compressed, accuracy = trained(net, budget)
    slim = without_input_quantizers(compressed.model)
    own, other = [], []
    for _ in range(3):
        own.append(forward_seconds(dense, example, BATCH, REPEATS).median)
        other.append(forward_seconds(slim, example, BATCH, REPEATS).median)
    return {
        "net": net,
        "of_dense": share,
        **ended(statistics.median(other), budget),
        "seconds_each": other,
        "dense_seconds_each": own,
        **_numbers(compressed, accuracy),
    }


def _numbers(compressed: geta.Compressed, accuracy: float) -> dict[str, Any]:
    report = compressed.report
    return {
        "group_sparsity": report.group_sparsity,
        "weight_bits": report.weight_bits,
        "activation_bits": report.activation_bits,
        "relative_bops": report.relative_bops,
        "bytes": report.bytes,
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.benchmarks.budgets")
    parser.add_argument("--kinds", default="counted,clocked")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in NETS:
        if "counted" in given.kinds:
            rows += [counted(name, budget) for budget in COUNTED[name]]
        if "clocked" in given.kinds:
            rows += [clocked(name, share) for share in SHARES]
    about = {"environment": origin(), "steps": STEPS, "seed": 0, "batch": BATCH}
    text = json.dumps({**about, "runs": rows}, indent=1) + "\n"
    if given.out is not None:
        write_text(given.out, text)
    sys.stdout.write(text)
