"""Train a net for a short time, save and export it, and compare everything with the model in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import geta_core as geta
from baselines.geta import Geta
from geta_core.artifact.audit import Audit, audit, audit_onnx
from geta_core.artifact.reader import open_artifact
from geta_core.export import export_onnx, export_pt2
from geta_core.export.runtime import Agreement, OnnxModule, SideBySide
from orchestration.assemble import build_model
from orchestration.compose import compose
from orchestration.finished import Finished
from orchestration.run import run
from tests.benchmarks.origin import origin

BOTH = (
    "method=tests.shipping.ship:Kept",
    "method.weight_bits=[4,8]",
    "method.activation_bits=[4,8]",
    "tracker=jsonl",
    "run.device=cpu",
)
NETS: dict[str, tuple[str, ...]] = {
    "resnet20": ("model=resnet20", "task=digits", "run.epochs=20", "optimizer.lr=0.05"),
    "vgg7": ("model=vgg7", "task=digits", "run.epochs=20", "optimizer.lr=0.05"),
    "mobilenetv2": (
        "model=mobilenetv2",
        "model.stem=cifar",
        "model.width=0.5",
        "model.dropout=0.0",
        "task=digits",
        "run.epochs=30",
        "optimizer=adamw",
        "optimizer.lr=0.003",
    ),
    "vit": (
        "model=vit",
        "model.patch_size=2",
        "model.width=64",
        "model.depth=4",
        "model.num_heads=4",
        "task=digits",
        "run.epochs=100",
        "optimizer=adamw",
        "optimizer.lr=0.003",
    ),
    "resnet20_cifar10": ("model=resnet20", "task=cifar10", "task.batch_size=64", "run.steps=800", "optimizer.lr=0.05"),
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
        "run.epochs=60",
        "optimizer=adamw",
        "optimizer.lr=0.003",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Kept(Geta):
    """GETA; the last model that was finished stays in memory beside its files."""

    LAST: ClassVar[list[geta.Compressed]] = []

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """As ``Geta``."""
        compressed = super().finish(prepared, calibration)
        self.LAST[:] = [compressed]
        return compressed


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
    folded: Agreement
    """Of the ONNX file whose batch norms are multiplied into the convolutions before them."""
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
        for name in ("onnx", "folded", "pt2"):
            found[name]["top1"] = getattr(self, name).top1
        return {**found, "sizes": sizes}


def equal(model: nn.Module, other: nn.Module, batches: Sequence[torch.Tensor]) -> bool:
    """Whether every tensor that both hold under one name is the same bit for bit, and so is every output."""
    own, others = model.state_dict(), other.state_dict()
    shared = own.keys() & others.keys()
    with torch.no_grad():
        answers = [torch.equal(model.eval()(batch), other.eval()(batch)) for batch in batches]
    weights = {name for name, _ in model.named_parameters()}
    return weights <= shared and all(torch.equal(own[name], others[name]) for name in shared) and all(answers)


def ship(values: tuple[str, ...], folder: Path) -> Shipped:
    """Run a configuration and everything after it."""
    config = compose([*BOTH, *values, f"run.output={folder / 'run'}"])
    result = run(config)
    opened = open_artifact(folder / "run" / "artifact")
    task = Finished(folder / "run").task()
    original = Kept.LAST.pop().model
    loaded = (opened.model, geta.load(opened.folder, model=build_model(config, task)))
    same = all(equal(original, other, task.calibration_batches(4)) for other in loaded)
    files = {name: folder / f"{name}.onnx" for name in ("onnx", "folded")}
    for name, path in files.items():
        export_onnx(opened.model, opened.weights, opened.inputs(), path, fold=name == "folded")
        audit_onnx(path, opened.folder)
    export_pt2(opened.model, opened.inputs(), folder / "model.pt2")
    others: dict[str, nn.Module] = {name: OnnxModule(path) for name, path in files.items()}
    others["pt2"] = torch.export.load(folder / "model.pt2").module()
    agreements = {}
    for name, other in others.items():
        both = SideBySide(opened.model, other)
        task.evaluate(both, "test")
        agreements[name] = both.agreement
    return Shipped(
        accuracy=result.accuracy,
        sizes=audit(opened.folder),
        same=same,
        onnx_bytes=files["onnx"].stat().st_size,
        relative_bops=result.relative_bops,
        weight_bits=result.weight_bits,
        activation_bits=result.activation_bits,
        group_sparsity=result.group_sparsity,
        **agreements,
    )


def record(net: str, folder: Path) -> dict[str, Any]:
    """Ship a net and say how."""
    started = time.perf_counter()
    shipped = ship(NETS[net], folder)
    return {
        "settings": settings(net),
        "seed": 0,
        "seconds": round(time.perf_counter() - started, 1),
        **shipped.as_dict(),
        "environment": origin(),
    }


def settings(net: str) -> list[str]:
    """What a net is trained with."""
    return [*BOTH, *NETS[net]]
