"""Regions that torch.export keeps as calls of a subgraph, written back into the graph around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from geta_core.graph.buffers import join_writes

higher = torch.ops.higher_order


def inline_regions(program: ExportedProgram) -> None:
    """Replace every ``no_grad``, ``enable_grad`` and disabled ``autocast`` region by its own operations, in place.

    Buffers that are filled piece by piece become concatenations.
    What flows into a ``no_grad`` region is detached instead, so that gradients stop where they did. An enabled
    autocast region keeps its call: its operations alone would not say in which precision they run.
    """
    _inline(program.graph_module, _buffers(program))
    join_writes(program.graph_module.graph)
    program.graph_module.graph.lint()
    program.graph_module.recompile()


def _buffers(program: ExportedProgram) -> set[str]:
    signature = program.graph_signature
    return {*signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}


def _inline(module: fx.GraphModule, plain: set[str]) -> None:
    """Inline the calls of one graph; names in ``plain`` never carry a gradient."""
    graph = module.graph
    for node in list(graph.nodes):
        region = _region(node)
        if region is None:
            continue
        body, arguments, stops = region
        inner = cast(fx.GraphModule, getattr(module, body))
        _inline(inner, set())
        with graph.inserting_before(node):
            given = [_detached(graph, value, plain) if stops else value for value in arguments]
            results = copied(graph, inner, given)
        replace(node, results)
    graph.eliminate_dead_code(is_impure_node=lambda node: not _unused_body(node))
    graph.lint()
    module.recompile()


def _region(node: fx.Node) -> tuple[str, list[Any], bool] | None:
    """Attribute of the subgraph, its arguments, and whether gradients stop; None for any other node."""
    if node.target is higher.wrap_with_set_grad_enabled:
        enabled, body, *arguments = node.args
        return str(cast(fx.Node, body).target), arguments, not enabled
    if node.target is higher.wrap_with_autocast:
        _, _, enabled, _, body, *arguments = node.args
        return None if enabled else (str(cast(fx.Node, body).target), arguments, False)
    return None


def _detached(graph: fx.Graph, value: Any, plain: set[str]) -> Any:
    shown = value.meta.get("val") if isinstance(value, fx.Node) else None
    if not isinstance(shown, Tensor) or not shown.is_floating_point() or value.name in plain:
        return value
    node = graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node


def copied(
    graph: fx.Graph, inner: fx.GraphModule, arguments: Sequence[Any], place: dict[str, Any] | None = None
) -> Any:
    """Copy the nodes of a subgraph to the insertion point; returns what it returned.

    Args:
        graph: what is copied into.
        inner: what is copied.
        arguments: in the place of its inputs.
        place: what the nodes say of where they come from, beside their own values.
    """
    known: dict[fx.Node, Any] = {}
    given = iter(arguments)
    for node in inner.graph.nodes:
        if node.op == "placeholder":
            known[node] = next(given)
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], known.__getitem__)
        else:
            known[node] = new = graph.node_copy(node, known.__getitem__)
            if place is not None:
                new.meta = {**place, "val": node.meta.get("val")}
    return ()


def replace(node: fx.Node, results: Any) -> None:
    """Let the users of a call read other nodes; a tuple is read item by item."""
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(results[cast(int, user.args[1])])
            user.graph.erase_node(user)
    node.graph.erase_node(node)


def _unused_body(node: fx.Node) -> bool:
    return node.op == "get_attr" and not node.users
