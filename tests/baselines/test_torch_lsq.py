"""``qat_only`` and ``prune_then_qat`` against PyTorch's own LSQ: same net, data, steps, optimizer, bits and seeds."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from orchestration.compose import compose
from orchestration.result import RunResult
from orchestration.run import run
from tests.baselines.torch_lsq import library_quantizer

LIBRARY = "tests.baselines.torch_lsq"
BITS = ("method.weight_bits=3", "method.activation_bits=4")
SEEDS = range(5)
EPOCHS = "run.epochs=12"
"""As in the record, docs/records/digits-library-lsq-5-seeds.json."""


def trained(method: str, seed: int, output: Path, *more: str) -> RunResult:
    place = output / f"{method.rpartition(':')[2]}-{seed}"
    shared = ["task=digits", f"run.seed={seed}", "run.threads=1", "tracker=jsonl", f"run.output={place}"]
    return run(compose([f"method={method}", *shared, *BITS, *more]))


@pytest.mark.parametrize(("bits", "signed"), [(3, True), (4, False)])
def test_the_library_has_the_papers_grid_and_gradient(bits: int, signed: bool) -> None:
    quantizer = library_quantizer(bits, signed)
    quantizer.enable_param_learning()
    step, top = 0.3, 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    quantizer.scale.data.fill_(step)
    x = torch.linspace(-2.0, 2.0, 41) * step * top + 0.01
    low = -top if signed else 0
    y = quantizer(x)
    assert torch.allclose(y, (x / step).round().clamp(low, top) * step, atol=1e-6)
    y.sum().backward()
    v = x / step
    each = torch.where(v.round() < low, float(low), torch.where(v.round() > top, float(top), v.round() - v))
    assert float(quantizer.scale.grad) == pytest.approx(float(each.sum()) / (x.numel() * top) ** 0.5, rel=1e-4)


def test_one_seed_agrees_with_the_library(tmp_path: Path) -> None:
    short = ("run.steps=120", "task.batch_size=64")
    ours = trained("prune_then_qat", 0, tmp_path, *short)
    theirs = trained(f"{LIBRARY}:AfterPruning", 0, tmp_path, *short)
    assert ours.steps == theirs.steps == 120
    assert (ours.weight_bits, ours.activation_bits) == (theirs.weight_bits, theirs.activation_bits) == (3, 4)
    assert ours.group_sparsity == theirs.group_sparsity == 0.5
    assert min(ours.accuracy, theirs.accuracy) > 0.8
    assert abs(ours.accuracy - theirs.accuracy) < 0.05
    assert theirs.metrics["val/accuracy"] == theirs.metrics["trained/val/accuracy"], "its grid is what was finished"


@pytest.mark.long
@pytest.mark.parametrize(("ours", "theirs"), [("qat_only", "Alone"), ("prune_then_qat", "AfterPruning")])
def test_five_seeds_agree_within_their_spread(ours: str, theirs: str, tmp_path: Path) -> None:
    own = [trained(ours, seed, tmp_path, EPOCHS).accuracy for seed in SEEDS]
    library = [trained(f"{LIBRARY}:{theirs}", seed, tmp_path, EPOCHS).accuracy for seed in SEEDS]
    spread = statistics.fmean([statistics.variance(own), statistics.variance(library)]) ** 0.5
    assert min(own + library) > 0.9
    assert abs(statistics.fmean(own) - statistics.fmean(library)) <= max(spread, 1 / 360), (own, library)
