"""Dense float, slimmed float and slimmed integer model side by side in onnxruntime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from geta_core.accounting.latency import Timing
from geta_core.copying import copied
from geta_core.export.onnx_file import export_onnx
from geta_core.export.runtime import onnx_seconds
from geta_core.graph import ExampleInputs
from geta_core.slim.verify import without_input_quantizers

if TYPE_CHECKING:
    from geta_core.report import QuantizedWeight

BATCHES = (1, 64)


def latencies(
    dense: nn.Module | None,
    model: nn.Module,
    weights: Mapping[str, QuantizedWeight],
    inputs: ExampleInputs,
    batches: Sequence[int] = BATCHES,
) -> dict[str, dict[int, Timing]]:
    """Time the models for each batch size; in turn, so that what slows the machine down slows all of them.

    Args:
        dense: the float model as it was before, None to leave it out.
        model: finished.
        weights: of the finished model.
        inputs: example.
        batches: numbers of examples in a pass.

    Returns:
        By name ("dense float", "slimmed float", "slimmed integer") and batch size.

    Raises:
        GetaError: if packages are missing or a model cannot be exported.
    """
    found: dict[str, dict[int, Timing]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for name, subject, own in (
            ("dense float", dense, {}),
            ("slimmed float", without_input_quantizers(model), {}),
            ("slimmed integer", model, weights),
        ):
            if subject is not None:
                files[name] = Path(folder) / f"{len(files)}.onnx"
                export_onnx(copied(subject), own, inputs, files[name], int4=False, fold=True)
        for batch in batches:
            for name, path in files.items():
                found.setdefault(name, {})[batch] = onnx_seconds(path, inputs, batch)
    return found
