"""A ``.pt2`` program of aten operations alone: ``torch.export.load`` reads it where geta is not installed."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geta_core.copying import copied
from geta_core.errors import GetaError
from geta_core.export.writing import written
from geta_core.graph import ExampleInputs
from geta_core.graph.capture import first_line
from geta_core.quantize import math
from geta_core.slim.graph_module import batch_size


def export_pt2(model: nn.Module, inputs: ExampleInputs, path: str | os.PathLike[str]) -> None:
    """Write a finished model in eval mode, with a dynamic batch; the file appears whole or not at all.

    The quantizers of the inputs become their formulas. The stored example inputs are zeros.

    Args:
        model: finished, or loaded from an artifact.
        inputs: example; its values are not written.
        path: of the file.

    Raises:
        GetaError: if the model cannot be exported, or the file cannot be written.
    """
    size, zeros = batch_size(inputs), inputs.map(torch.zeros_like)
    dynamic: Any = torch.export.ShapesCollection()
    for value in zeros.leaves():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size:
            dynamic[value] = {0: torch.export.Dim.AUTO}
    quantizer = torch.ops.geta.fake_quantize.default
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            own = copied(model).eval()
            program = torch.export.export(own, zeros.args, zeros.kwargs, dynamic_shapes=dynamic, strict=False)
            program = program.run_decompositions({quantizer: _quantize})
    except Exception as error:
        raise GetaError(f"export_pt2: torch.export cannot trace the model: {first_line(error)}") from error
    written(Path(path), lambda partial: torch.export.save(program, partial), "export_pt2")


def _quantize(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool = False) -> Tensor:
    return math.quantize(x, d, q_m, t, signed)
