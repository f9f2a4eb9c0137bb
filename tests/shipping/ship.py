"""Train a net for a short time, save and export it, and compare everything with the model in memory."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import geta_core as geta
from geta_core.artifact.audit import Audit, audit, audit_onnx
from geta_core.artifact.reader import open_artifact
from geta_core.export import export_onnx, export_pt2
from geta_core.export.runtime import Agreement, OnnxModule, SideBySide
from orchestration.assemble import build_model
from orchestration.cli_export import task_of
from orchestration.compose import compose
from orchestration.run import run

BOTH = ("method=geta", "method.weight_bits=[4,8]", "method.activation_bits=[4,8]", "tracker=jsonl", "run.device=cpu")
NETS: dict[str, tuple[str, ...]] = {
    "resnet20": ("model=resnet20", "task=digits", "run.epochs=20", "optimizer.lr=0.05"),
    "vgg7": ("model=vgg7", "task=digits", "run.epochs=20", "optimizer.lr=0.05"),
    "mobilenetv2": (
        "model=mobilenetv2",
        "model.stem=cifar",
        "model.width=0.5",
        "model.dropout=0.0",
        "task=digits",
        "run.epochs=20",
        "optimizer.lr=0.05",
    ),
    "vit": (
        "model=vit",
        "model.patch_size=2",
        "model.width=64",
        "model.depth=4",
        "model.num_heads=4",
        "task=digits",
        "run.epochs=20",
        "optimizer=adamw",
        "optimizer.lr=0.001",
    ),
    "bert": (
        "model=bert",
        "model.vocab_size=17",
        "model.sequence_length=64",
        "model.width=64",
        "model.depth=2",
        "model.num_heads=4",
        "model.feedforward=128",
        "model.dropout=0.0",
        "task=tests.shipping.tokens:DigitTokens",
        "run.epochs=20",
        "optimizer=adamw",
        "optimizer.lr=0.001",
    ),
}


@dataclass(frozen=True)
class Shipped:
    """What came out."""

    accuracy: float
    """Of the loaded artifact on the test split."""
    sizes: Audit
    same: bool
    """Whether both ways of loading give the saved model bit for bit."""
    onnx: Agreement
    onnx_bytes: int
    pt2: Agreement
    relative_bops: float
    weight_bits: float
    activation_bits: float
    group_sparsity: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers; the rows of single tensors are left out."""
        found = asdict(self)
        sizes = self.sizes.as_dict()
        del sizes["tensors"]
        for name in ("onnx", "pt2"):
            found[name]["top1"] = getattr(self, name).top1
        return {**found, "sizes": sizes}


def ship(values: tuple[str, ...], folder: Path) -> Shipped:
    """Run a configuration and everything after it."""
    config = compose([*BOTH, *values, f"run.output={folder / 'run'}"])
    result = run(config)
    opened = open_artifact(folder / "run" / "artifact")
    task = task_of(folder / "run")
    inputs = task.example_inputs()
    filled = geta.load(opened.folder, model=build_model(config, task))
    with torch.no_grad():
        same = torch.equal(opened.model(inputs), filled(inputs))
    own = dict(filled.named_parameters(remove_duplicate=False))
    same &= all(torch.equal(own[name], value) for name, value in opened.model.named_parameters() if name in own)
    export_onnx(opened.model, opened.weights, opened.inputs(), folder / "model.onnx")
    export_pt2(opened.model, opened.inputs(), folder / "model.pt2")
    audit_onnx(folder / "model.onnx", opened.folder)
    agreements = []
    for other in (OnnxModule(folder / "model.onnx"), torch.export.load(folder / "model.pt2").module()):
        both = SideBySide(opened.model, other)
        task.evaluate(both, "test")
        agreements.append(both.agreement)
    return Shipped(
        accuracy=result.accuracy,
        sizes=audit(opened.folder),
        same=same,
        onnx=agreements[0],
        onnx_bytes=(folder / "model.onnx").stat().st_size,
        pt2=agreements[1],
        relative_bops=result.relative_bops,
        weight_bits=result.weight_bits,
        activation_bits=result.activation_bits,
        group_sparsity=result.group_sparsity,
    )


def record(nets: list[str], folder: Path) -> dict[str, Any]:
    """Ship the nets and say how."""
    from orchestration.records import environment

    found: dict[str, Any] = {}
    for net in nets:
        started = time.perf_counter()
        shipped = ship(NETS[net], folder / net)
        settings = [*BOTH, *NETS[net]]
        found[net] = {
            "settings": settings,
            "digest": hashlib.sha256(" ".join(settings).encode()).hexdigest()[:12],
            "seed": 0,
            "seconds": round(time.perf_counter() - started, 1),
            **shipped.as_dict(),
        }
    return {"environment": dict(environment("cpu")), "nets": found}
