"""Write a compressed model as ONNX, and compare what onnxruntime computes with the model."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from geta_core.copying import copied
from geta_core.errors import ConfigError, GetaError
from geta_core.export import onnx_nodes
from geta_core.export.inference import grids, inference_graph
from geta_core.export.writing import written
from geta_core.graph import ExampleInputs
from geta_core.graph.capture import first_line
from geta_core.slim.graph_module import batch_size

if TYPE_CHECKING:
    from geta_core.report import QuantizedWeight

OPSET = 21
"""The first operator set whose QuantizeLinear and DequantizeLinear take 4 and 16 bits."""
PACKAGES = ("onnx", "onnxscript")


class _Mark(nn.Module):
    """Stands for a quantized input until the ONNX graph exists; no operator of that name is ever run."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{onnx_nodes.DOMAIN}::{onnx_nodes.MARK}",
            (x,),
            attrs={"number": self.number},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        return marked


def export_onnx(
    model: nn.Module,
    weights: Mapping[str, QuantizedWeight],
    inputs: ExampleInputs,
    path: str | os.PathLike[str],
    *,
    int4: bool = True,
    fold: bool = False,
) -> None:
    """Write a finished model in eval mode, with a dynamic batch; the file appears whole or not at all.

    Args:
        model: finished, or loaded from an artifact; float32.
        weights: of the finished model.
        inputs: example; its values are not written.
        path: of the file.
        int4: store up to 4 bits as INT4; False takes INT8 for them, which more kernels compute with.
        fold: multiply batch norms into the steps of the convolutions before them, so that integer kernels take the
            whole layer: faster, but these kernels round its bias, and a few answers may differ from the model's.

    Raises:
        GetaError: if packages are missing, the model cannot be exported, or the file cannot be written.
    """
    _check(model, int4, fold)
    from onnx import checker

    inputs = inputs.map(lambda t: t.cpu())
    found = inference_graph(copied(model).cpu(), weights, inputs, fold=fold)
    by_node = grids(found.module)
    by_number = dict(enumerate(by_node.values()))
    _mark(found.module, list(by_node))
    proto = _translate(found.module, inputs)
    onnx_nodes.place(proto, found.weights, by_number, 4 if int4 else 8)
    checker.check_model(proto, full_check=True)
    written(Path(path), proto.SerializeToString(), "export_onnx")


def _check(model: nn.Module, int4: object, fold: object) -> None:
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise GetaError(f"export_onnx needs {' and '.join(absent)}; install geta[onnx]")
    faults = [
        f"{name} must be true or false, but got {v!r}"
        for name, v in {"int4": int4, "fold": fold}.items()
        if not isinstance(v, bool)
    ]
    if faults:
        raise ConfigError(faults)
    other = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()} - {torch.float32}
    if other:
        raise GetaError(
            f"export_onnx takes models of float32, but this one holds {', '.join(map(str, other))}; call model.float()"
        )


def _mark(module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    for number, node in enumerate(nodes):
        module.add_submodule(f"_grid_{number}", _Mark(number))
        with module.graph.inserting_before(node):
            mark = module.graph.call_module(f"_grid_{number}", (node.args[0],))
        node.replace_all_uses_with(mark)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _translate(module: fx.GraphModule, inputs: ExampleInputs) -> Any:
    """The ModelProto of a graph."""
    size = batch_size(inputs)
    dynamic: Any = torch.export.ShapesCollection()
    for value in inputs.leaves():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size:
            dynamic[value] = {0: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.export.export(module, inputs.args, inputs.kwargs, dynamic_shapes=dynamic, strict=False)
            made = torch.onnx.export(
                program, dynamo=True, optimize=False, opset_version=OPSET, external_data=False, verbose=False
            )
    except Exception as error:
        raise GetaError(f"export_onnx: the model has an operation that ONNX lacks: {first_line(error)}") from error
    assert made is not None
    proto = made.model_proto
    _name_batch(proto)
    return proto


def _name_batch(proto: Any) -> None:
    """Call the size of a batch by its name instead of torch's number of a symbol."""
    symbols = [
        dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim[:1] if dim.dim_param
    ]
    if not symbols:
        return
    symbol = re.compile(rf"\b{re.escape(symbols[0])}\b")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub("batch", dim.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
