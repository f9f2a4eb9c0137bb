"""``python -m tests.benchmarks.latency``: VGG7 dense, slimmed and with integers, side by side in onnxruntime.

Half of the groups are removed, at random in each family, what is kept is divisible by 16, and weights and inputs have 8
bits. Time does not depend on the values, so nothing is trained.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import geta_core as geta
from geta_core.accounting.latency import Timing, forward_seconds
from geta_core.export import export_onnx
from geta_core.export.latencies import latencies
from geta_core.graph import ExampleInputs
from geta_core.qasso.selection import Selector
from geta_core.slim.verify import without_input_quantizers
from orchestration.models import build
from tests.benchmarks.origin import origin

BOUNDS = {"slimmed over dense, float": 1.6, "integer over float, slimmed": 1.5}
BATCHES = (1, 64)


def compressed(sparsity: float, divisible_by: int) -> tuple[torch.nn.Module, geta.Compressed]:
    """The dense net, and the finished one."""
    torch.manual_seed(0)
    dense = build("vgg7", num_classes=10).eval()
    config = geta.CompressionConfig(
        sparsity=sparsity, weight_bits=(8, 8), activation_bits=(8, 8), divisible_by=divisible_by, learn_exponent=False
    )
    prepared = geta.prepare(copy.deepcopy(dense), torch.randn(8, 3, 32, 32), config)
    for site in prepared.sites:
        site.quantizer.set_bits_(8)
    selector = Selector(prepared.family, sparsity=sparsity, min_kept=1, divisible_by=divisible_by)
    order = torch.zeros(prepared.num_prunable, dtype=torch.float64)
    for family in range(int(prepared.family.max()) + 1):
        own = torch.nonzero(prepared.family == family).flatten()
        order[own[torch.randperm(len(own))]] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    chosen = selector.choose(order, prepared.none_dead(), selector.target)
    prepared.zero_(torch.nonzero(chosen).flatten().tolist())
    return dense, geta.finish(prepared)


def profile(model: geta.Compressed, int4: bool) -> dict[str, Any]:
    """Milliseconds per operation of onnxruntime for a batch of 64, slowest first."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model.model, model.weights, model.inputs, path, int4=int4, fold=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: torch.randn(64, 3, 32, 32).numpy()}
        for _ in range(5):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {name: round(time / 5000, 3) for name, time in spent.most_common()}


def measured(threads: int) -> dict[str, Any]:
    """All numbers."""
    torch.set_num_threads(threads)
    dense, model = compressed(0.5, 16)
    found = latencies(dense, model.model, model.weights, model.inputs, BATCHES)
    batch = BATCHES[-1]
    times = {name: own[batch].median for name, own in found.items()}
    ratios = {
        "slimmed over dense, float": times["dense float"] / times["slimmed float"],
        "integer over float, slimmed": times["slimmed float"] / times["slimmed integer"],
    }
    example = ExampleInputs.of(torch.randn(8, 3, 32, 32))
    slim = without_input_quantizers(model.model)
    return {
        "group_sparsity": model.report.group_sparsity,
        "kept": {name: tuple(value.shape) for name, value in model.model.named_parameters() if value.dim() > 1},
        "macs": model.report.macs,
        "dense_macs": model.report.dense_macs,
        "seconds": {name: {str(b): t.as_dict() for b, t in own.items()} for name, own in found.items()},
        "torch_seconds": {
            str(b): {"dense": _torch(dense, example, b), "slimmed": _torch(slim, example, b)} for b in BATCHES
        },
        "ratios_at_batch_64": ratios,
        "bounds": BOUNDS,
        "integer_profile_ms": profile(model, int4=False),
        "threads": threads,
    }


def _torch(model: torch.nn.Module, example: ExampleInputs, batch: int) -> dict[str, Any]:
    timing: Timing = forward_seconds(model, example, batch)
    return timing.as_dict()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.benchmarks.latency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result = {"environment": origin(), **measured(given.threads)}
    written = json.dumps(result, indent=1) + "\n"
    if given.out is not None:
        given.out.write_text(written, encoding="utf-8")
    sys.stdout.write(written)
