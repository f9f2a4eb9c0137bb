"""A graph as JSON: operations by their registered aten names, nothing that could run code of the file's choosing."""

from __future__ import annotations

import keyword
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from geta_core.artifact.manifest import field
from geta_core.artifact.specs import decode_spec, encode_spec
from geta_core.errors import ArtifactError
from geta_core.graph.capture import first_line
from geta_core.slim import modes

NAMESPACES = ("aten", "geta")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (
        "getitem",
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    )
} | {name: getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")}
MODES = {cls.__name__: cls for cls in (*modes.MODES.values(), modes.DeviceOf)}
FILE = "filename"
OPS = ("placeholder", "get_attr", "call_function", "call_module", "output")
_PLAIN = (bool, int, str)


def encode(module: fx.GraphModule) -> dict[str, Any]:
    """The graph of a switchable module as plain JSON data.

    Raises:
        ArtifactError: if an operation or argument has no plain form.
    """
    nodes = [_encode_node(module, node) for node in module.graph.nodes if not _is_guard(module, node)]
    codegen = module.graph._codegen
    info = codegen.pytree_info if isinstance(codegen, _PyTreeCodeGen) else None
    if info is None or info.out_spec is None:
        raise ArtifactError("save: the graph has no calling convention; it must come from torch.export")
    return {
        "nodes": nodes,
        "arguments": list(info.orig_args),
        "in_spec": encode_spec(info.in_spec),
        "out_spec": encode_spec(info.out_spec),
    }


def _is_guard(module: fx.GraphModule, node: fx.Node) -> bool:
    """Checks that torch.export adds and no result depends on."""
    if node.users or node.op not in ("call_module", "call_function"):
        return False
    if node.op == "call_module":
        return not isinstance(module.get_submodule(str(node.target)), tuple(MODES.values()))
    return not isinstance(node.target, torch._ops.OpOverload) or node.target.overloadpacket in (
        torch.ops.aten._assert_scalar,
        torch.ops.aten._assert_tensor_metadata,
        torch.ops.aten.sym_constrain_range_for_size,
    )


def _encode_node(module: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    if node.op == "call_module":
        target = {"mode": type(module.get_submodule(str(node.target))).__name__}
        if target["mode"] not in MODES:
            raise ArtifactError(f"save: {node.target} is a module that the artifact cannot hold")
    elif node.op == "call_function":
        target = _encode_function(node.target)
    else:
        target = {"target": str(node.target)}
    return {"op": node.op, "name": node.name, **target, "args": _encode(node.args), "kwargs": _encode(node.kwargs)}


def _encode_function(target: Any) -> dict[str, str]:
    if isinstance(target, torch._ops.OpOverload) and target.namespace in NAMESPACES:
        return {"operator": f"{target.namespace}.{target._opname}.{target._overloadname}"}
    for name, function in FUNCTIONS.items():
        if function is target:
            return {"function": name}
    raise ArtifactError(f"save: operation {target} cannot be stored; only {', '.join(NAMESPACES)} operators can")


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"map": {str(key): _encode(item) for key, item in value.items()}}
    for kind, table in _CONSTANTS.items():
        for name, constant in table.items():
            if constant is value:
                return {kind: name}
    if isinstance(value, torch.device):
        return {"device": value.type}
    raise ArtifactError(f"save: an argument of type {type(value).__name__} cannot be stored")


_CONSTANTS: dict[str, dict[str, Any]] = {
    "dtype": {n: v for n, v in vars(torch).items() if isinstance(v, torch.dtype)},
    "layout": {n: v for n, v in vars(torch).items() if isinstance(v, torch.layout)},
    "memory_format": {n: v for n, v in vars(torch).items() if isinstance(v, torch.memory_format)},
}


def decode(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """Build the module again; every tensor is held under its name, also where no operation reads it.

    Args:
        data: what ``encode`` returned.
        tensors: parameters and buffers by name.

    Raises:
        ArtifactError: if an operation is not one of the known operators, or a name is not a plain name.
    """
    try:
        check_tensor_names(tensors)
        module = _build(data, dict(tensors))
        for name, tensor in tensors.items():
            _hold(module, name, tensor)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"load: the manifest's graph is not valid ({first_line(error)})") from error
    modes.enable_modes(module)
    return module


def _build(data: Mapping[str, Any], root: dict[str, Any]) -> fx.GraphModule:
    graph, known = fx.Graph(), dict[str, fx.Node]()
    arguments, in_spec = field(data, "arguments", list), decode_spec(data["in_spec"])
    _check_names(arguments)
    # The keywords of the call become text of the generated code too.
    _check_names(key for child in in_spec.children() if child.type is dict for key in child.context)
    for entry in field(data, "nodes", list):
        if entry["op"] not in OPS:
            raise ArtifactError(f"load: unknown kind of node {entry['op']!r} in the graph")
        args = tuple(_decode(item, known) for item in field(entry, "args", list))
        kwargs = {key: _decode(item, known) for key, item in entry["kwargs"]["map"].items()}
        _check_names((entry["name"], *kwargs))
        target = _decode_target(entry, root)
        known[entry["name"]] = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(arguments, in_spec, decode_spec(data["out_spec"]))))
    return fx.GraphModule(root, graph)


def _hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if leaf in module._parameters or leaf in module._buffers:
        return
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)


def _check_names(names: Iterable[Any]) -> None:
    """Names become attributes and variables of generated code: they must be identifiers."""
    for name in names:
        if not (isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)):
            raise ArtifactError(f"load: {name!r} is not a valid name in a graph")


def check_tensor_names(names: Iterable[Any]) -> None:
    """Names of tensors become attributes: words of letters, digits, _ and - with dots between, none of Python's own.

    A word that is no identifier stands between quotation marks in the code of a graph, so nothing else may be in it.

    Raises:
        ArtifactError: naming the first that is something else.
    """
    for name in names:
        parts = name.split(".") if isinstance(name, str) else [""]
        if not all(part and f"_{part.replace('-', '_')}".isidentifier() and part[:2] != "__" for part in parts):
            raise ArtifactError(f"load: {name!r} is not a valid tensor name")


def _decode_target(entry: Mapping[str, Any], root: dict[str, Any]) -> Any:
    if entry["op"] == "call_function":
        return _decode_function(entry)
    if entry["op"] == "call_module":
        kind = MODES.get(entry["mode"])
        if kind is None:
            raise ArtifactError(f"load: unknown module {entry['mode']!r} in the graph")
        name = f"_mode_{entry['name']}"
        root[name] = kind()
        return name
    target = entry["target"]
    if entry["op"] != "get_attr":
        _check_names((target,))
    elif target not in root:
        raise ArtifactError(f"load: the graph reads a tensor {target!r} that the artifact does not hold")
    return target


def _decode_function(entry: Mapping[str, Any]) -> Any:
    if "function" in entry:
        if entry["function"] not in FUNCTIONS:
            raise ArtifactError(f"load: unknown function {entry['function']!r} in the graph")
        return FUNCTIONS[entry["function"]]
    parts = str(entry["operator"]).split(".")
    if len(parts) != 3 or parts[0] not in NAMESPACES:
        raise ArtifactError(f"load: unknown operator {entry['operator']!r} in the graph")
    packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
    overload = getattr(packet, parts[2], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    if not isinstance(overload, torch._ops.OpOverload) or _names_a_file(overload):
        raise ArtifactError(f"load: unknown operator {entry['operator']!r} in the graph")
    return overload


def _names_a_file(overload: torch._ops.OpOverload) -> bool:
    """Whether an operator would read or make a file of the artifact's choosing."""
    return any(argument.name == FILE for argument in overload._schema.arguments)


def _decode(value: Any, known: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *more = value.items()
    if more:
        raise ArtifactError("load: the manifest's graph is not valid")
    if kind == "node":
        return known[content]
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    if kind == "map":
        return {key: _decode(item, known) for key, item in content.items()}
    return _CONSTANTS[kind][content]
