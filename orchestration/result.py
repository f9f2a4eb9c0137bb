"""What a finished run is worth: ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from geta_core.errors import ArtifactError
from orchestration.files import write_json


def _later(each: Field[Any]) -> bool:
    """Whether results of earlier versions lack a field."""
    return each.default_factory is not MISSING


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The numbers of one finished run; shares and accuracies are in 0 .. 1."""

    directory: str
    """Run directory."""
    digest: str
    """Names the configuration."""
    task: str
    model: str
    method: str
    seed: int
    steps: int
    """Optimizer steps of the whole run."""
    epochs: int
    device: str
    precision: str
    metrics: Mapping[str, float]
    """Of the compressed model on "val/..." and "test/...", and of the trained one on "trained/val/..."."""
    group_sparsity: float
    """Removed share of the prunable groups."""
    weight_bits: float
    """Average over the elements of the weights; 32 is float."""
    activation_bits: float
    """Average over the layers' inputs; 32 is float."""
    relative_bops: float
    """Bit operations over those of the dense float model; zeros inside kept weights count like any number."""
    relative_sparse_bops: float
    """The same with nonzero weights alone, as papers on unstructured pruning count."""
    parameters: int
    macs: float
    """Multiply-accumulates per example."""
    bytes: int
    """Size of the stored tensors."""
    dense: Mapping[str, float]
    """parameters, macs, bytes and latency_ms of the dense float model."""
    latency_ms: float
    """Median time of a forward pass of one example."""
    native: bool
    """Whether the compressed model is an instance of the user's own class."""
    max_error64: float
    """Largest difference between zeroed and slimmed model in float64."""
    layers: list[dict[str, Any]]
    """One row per layer: name, macs, weight_bits, input_bits, density (nonzero share), channels, dense_channels."""
    seconds: Mapping[str, float]
    """"train" over all attempts, "finish", and "total" of this attempt."""
    environment: Mapping[str, Any]
    """Command, commit, versions, machine."""
    latency: Mapping[str, Any] = field(default_factory=dict)
    """With run.latency, seconds in onnxruntime on the CPU: median, low and high quartile by model and batch size; or
    "missing": why there are none."""

    def latencies(self) -> dict[str, float]:
        """Return the medians of ``latency`` in milliseconds as trackers get them."""
        return {
            f"final/{model.replace(' ', '_')}_ms/batch_{batch}": timing["median"] * 1000
            for model, own in self.latency.items()
            if isinstance(own, Mapping)
            for batch, timing in own.items()
        }

    @property
    def accuracy(self) -> float:
        """Accuracy of the compressed model on the test split; NaN where the task has none."""
        return self.metrics.get("test/accuracy", float("nan"))

    def save(self, path: Path) -> None:
        """Write the result at once."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read a result.

        Raises:
            ArtifactError: when the file is missing or damaged.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **{each.name: values[each.name] for each in fields(cls) if each.name in values or not _later(each)}
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is no result of a run ({type(error).__name__}: {error})") from error

    def numbers(self) -> dict[str, float]:
        """Return the numbers that trackers get at the end; those of the clock are not among them."""
        names = ["group_sparsity", "weight_bits", "activation_bits", "relative_bops", "relative_sparse_bops"]
        names += ["parameters", "macs", "bytes"]
        found = {f"final/{name}": float(getattr(self, name)) for name in names}
        return {**{f"final/{key}": value for key, value in self.metrics.items()}, **found}
