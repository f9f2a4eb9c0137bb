"""Results with known numbers, for what is only shown or computed; no run stands behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.compose import compose
from orchestration.config import Config
from orchestration.result import RunResult

ABOUT = {
    "command": "geta run",
    "code": {"commit": "0123456789abcdef0123456789abcdef01234567", "modified": False},
    "versions": {"torch": "2.13.0", "numpy": "2.4.6", "scipy": "1.17.1"},
    "python": "3.11.7",
    "platform": "Linux x86_64",
    "device": "cpu",
    "threads": 1,
}


def config(*keys: str, seed: int = 0) -> Config:
    return compose(["task=digits", f"run.seed={seed}", *keys])


def result(accuracy: float, bops: float, seed: int = 0, **changes: Any) -> RunResult:
    """Return a result; accuracy and relative BOPs in percent."""
    made = config(seed=seed)
    layer = {
        "name": "head.weight",
        "macs": 1000.0,
        "weight_bits": 32.0,
        "input_bits": 32.0 * bops / 100,
        "density": 1.0,
    }
    values: dict[str, Any] = {
        "directory": "",
        "digest": made.digest(),
        "task": "digits",
        "model": "digits_cnn",
        "method": "geta",
        "seed": seed,
        "steps": 100,
        "epochs": 5,
        "device": "cpu",
        "precision": "float32",
        "metrics": {"test/accuracy": accuracy / 100, "val/accuracy": accuracy / 100},
        "group_sparsity": 0.5,
        "weight_bits": 4.0,
        "activation_bits": 8.0,
        "relative_bops": bops / 100,
        "relative_sparse_bops": bops / 200,
        "parameters": 1000,
        "macs": 1000.0,
        "bytes": 5000,
        "dense": {"parameters": 2000, "macs": 1000.0, "bytes": 8000, "latency_ms": 1.0},
        "latency_ms": 0.5,
        "native": True,
        "max_error64": 0.0,
        "layers": [{**layer, "channels": 10, "dense_channels": 10}],
        "seconds": {"train": 10.0, "finish": 1.0, "total": 12.0},
        "environment": ABOUT,
    }
    return RunResult(**{**values, **changes})


def cells(values: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, dict[int, RunResult]]:
    """Return results of cells, one (accuracy, relative BOPs) in percent per seed."""
    return {cell: {seed: result(*pair, seed=seed) for seed, pair in enumerate(pairs)} for cell, pairs in values.items()}
