"""ONNX nodes and tensors of quantized weights and inputs (operator set 21, whose types include int4 and int16)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from geta_core.export.inference import Grid, Whole

WIDENED = 64
"""Largest level that INT8 weights of fewer bits are brought to. Integer kernels round a layer's bias to multiples of
(step of the input x step of the weight), so the smaller the step, the nearer they come to what is written. Above 64,
pairs of products with unsigned inputs no longer fit the 16 bits that processors without VNNI add them in."""


DOMAIN, MARK = "geta", "Grid"
CLIPS = INTEGER_KERNELS = 8
"""The width of the whole numbers that Clip takes; 4 and 16 bits are not among its types. The same width of weights is
what integer kernels compute with."""


INPUTS = 8
"""The narrowest type of inputs: onnxruntime 1.32 refuses a model in which Clip precedes QuantizeLinear to 4 bits
("Unexpected data type for QuantizeLinear input y_zero_point"), and inputs are not stored."""


def place(model: Any, weights: Mapping[str, Whole], grids: Mapping[int, Grid], narrowest: int) -> None:
    """Put whole-number weights and quantized inputs into an ONNX model, in place.

    Args:
        model: a ModelProto whose initializers hold the weights in floating point under their names, and whose nodes
            ``geta::Grid`` with the attribute ``number`` stand for quantized inputs.
        weights: by name.
        grids: by number.
        narrowest: 4, or 8 for runtimes that compute with int8 alone.
    """
    graph = model.graph
    floats = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    for name in [name for name in weights if name in floats]:
        whole = _transposed(graph, name, weights[name])
        tensors, node = _weight(name, whole, narrowest)
        graph.initializer.remove(floats[name])
        graph.initializer.extend(tensors)
        nodes.append(node)
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type == MARK:
            number = next(attribute.i for attribute in node.attribute if attribute.name == "number")
            tensors, made = _input(node.input[0], node.output[0], grids[number], number)
            graph.initializer.extend(tensors)
            nodes.extend(made)
        else:
            nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    for entry in [entry for entry in model.opset_import if entry.domain == DOMAIN]:
        model.opset_import.remove(entry)
    _forget_sources(model)


def _forget_sources(model: Any) -> None:
    """Leave out what the exporter notes of the Python code (paths among it), and shapes that a reader infers."""
    graph = model.graph
    del graph.value_info[:]
    for described in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del described.metadata_props[:]
        described.ClearField("doc_string")


def whole_type(bits: int, signed: bool, narrowest: int) -> tuple[str, int]:
    """Name of the narrowest integer type that holds ``bits`` bits, and its own width."""
    width = next(width for width in (4, 8, 16) if width >= max(bits, narrowest))
    return f"{'' if signed else 'U'}INT{width}", width


def _transposed(graph: Any, name: str, whole: Whole) -> Whole:
    """Store a weight as its readers want it where all of them transpose it in the same way; they then read it as is."""
    readers = [node for node in graph.node if name in node.input]
    orders = {tuple(_order(node)) for node in readers}
    outputs = {value.name for value in graph.output}
    kept = any(name == value or node.output[0] in outputs for value in outputs for node in readers)
    if len(orders) != 1 or not (order := orders.pop()) or kept:
        return whole
    for node in readers:
        for reader in graph.node:
            for at, value in enumerate(reader.input):
                if value == node.output[0]:
                    reader.input[at] = name
        graph.node.remove(node)
    step = whole.step.permute(order) if whole.step.dim() else whole.step
    axis = None if whole.axis is None else order.index(whole.axis)
    return Whole(whole.levels.permute(order).contiguous(), step, whole.bits, axis)


def _order(node: Any) -> list[int]:
    """The permutation of a Transpose, empty for any other node."""
    if node.op_type != "Transpose" or node.domain:
        return []
    return [int(dim) for attribute in node.attribute if attribute.name == "perm" for dim in attribute.ints]


def _weight(name: str, whole: Whole, narrowest: int) -> tuple[list[Any], Any]:
    from onnx import helper

    kind, width = whole_type(int(whole.bits.max()), True, narrowest)
    whole = _widened(whole) if width == INTEGER_KERNELS else whole
    tensors = [_tensor(f"{name}.levels", kind, whole.levels.numpy()), _floats(f"{name}.step", whole.step.numpy())]
    axis: dict[str, Any] = {} if whole.axis is None else {"axis": whole.axis}
    made = helper.make_node("DequantizeLinear", [t.name for t in tensors], [name], name=f"{name}.dequantize", **axis)
    return tensors, made


def _widened(whole: Whole) -> Whole:
    """The same weights bit for bit with 2^k times the levels and the steps over 2^k."""
    top = int(whole.levels.abs().max()) if whole.levels.numel() else 0
    doublings = max(0, (WIDENED // top).bit_length() - 1) if top else 0
    return dataclasses.replace(whole, levels=whole.levels * 2**doublings, step=whole.step / 2**doublings)


def _input(source: str, result: str, grid: Grid, number: int) -> tuple[list[Any], list[Any]]:
    """Make x -> clip -> QuantizeLinear -> DequantizeLinear, with x replaced by sgn(x) |x|^t where t is not 1.

    Where Clip takes the type (8 bits), it stands after the rounding, at the whole number q_m / d: the levels are the
    same, since rounding is monotonic, and a runtime can still join the rounding with the layer before it. It is left
    out where the type itself ends there.
    """
    from onnx import helper

    kind, width = whole_type(grid.bits, grid.signed, INPUTS)
    prefix = f"{grid.name}.{number}"
    tensors, nodes, current = list[Any](), list[Any](), source

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"{prefix}.{op}.{len(nodes)}", **attributes))
        return output

    def constant(suffix: str, value: Any, kind: str = "FLOAT") -> str:
        tensors.append(_tensor(f"{prefix}.{suffix}", kind, np.asarray(value)))
        return f"{prefix}.{suffix}"

    if grid.t is not None:
        low, high, exponent = constant("zero", 0.0), constant("q_m", grid.q_m), constant("t", grid.t)
        size = add("Abs", [current], f"{prefix}.size") if grid.signed else current
        size = add("Clip", [size, low, high], f"{prefix}.clipped")
        raised = add("Pow", [size, exponent], f"{prefix}.raised")
        if grid.signed:
            raised = add("Mul", [add("Sign", [current], f"{prefix}.sign"), raised], f"{prefix}.signed")
        current = raised
    elif width != CLIPS and not _ends(grid, width):
        bounds = constant("low", -grid.q_m if grid.signed else 0.0), constant("high", grid.q_m)
        current = add("Clip", [current, *bounds], f"{prefix}.clipped")
    scale, zero = constant("step", grid.d), constant("zero_point", 0, kind)
    current = add("QuantizeLinear", [current, scale, zero], f"{prefix}.levels")
    if grid.t is None and width == CLIPS and not _ends(grid, width):
        bounds = constant("low", -grid.top if grid.signed else 0, kind), constant("high", grid.top, kind)
        current = add("Clip", [current, *bounds], f"{prefix}.clipped")
    add("DequantizeLinear", [current, scale, zero], result)
    return tensors, nodes


def _ends(grid: Grid, width: int) -> bool:
    """Whether the type's own ends are those of the grid; a signed type has one level more."""
    return not grid.signed and grid.top == 2**width - 1


def _tensor(name: str, kind: str, values: np.ndarray) -> Any:
    import onnx
    from onnx import helper

    number = getattr(onnx.TensorProto, kind)
    if kind.endswith("INT4"):
        flat = values.astype(np.int8).reshape(-1) & 0xF
        flat = np.append(flat, np.zeros(len(flat) % 2, flat.dtype)).astype(np.uint8)
        data = (flat[0::2] | (flat[1::2] << 4)).tobytes()
    else:
        data = values.astype(helper.tensor_dtype_to_np_dtype(number)).tobytes()
    return helper.make_tensor(name, number, values.shape, data, raw=True)


def _floats(name: str, values: np.ndarray) -> Any:
    return _tensor(name, "FLOAT", values.reshape(-1) if values.ndim else values)
