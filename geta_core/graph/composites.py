"""Operations that are made of others, written as their parts: what has a rule for each needs none of its own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from geta_core.graph.inline import copied, replace


def write_out(program: ExportedProgram) -> None:
    """Replace composite operations without a rule by what they do, in place.

    An operation is composite if torch knows it only as a function of others (CompositeImplicitAutograd), such as the
    one by which torchao chooses a grid. The graph is for reading then: parts have no backward pass of their own.
    """
    from geta_core.graph.rules import install_all
    from geta_core.graph.rules.base import lookup

    install_all()
    graph: fx.Graph = program.graph_module.graph
    written = [_written_out(node) for node in list(graph.nodes) if _composite(node) and lookup(node.target) is None]
    if any(written):
        graph.lint()
        program.graph_module.recompile()


def _composite(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")


def _written_out(node: fx.Node) -> bool:
    """Write one operation out; False, and nothing is changed, where its parts depend on more than its arguments."""
    target, sources = node.target, node.all_input_nodes
    values = [source.meta.get("val") for source in sources]
    if not values or not all(isinstance(value, torch._subclasses.FakeTensor) for value in values):
        return False

    def call(*given: Tensor) -> Any:
        known = dict(zip(sources, given, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        return target.decompose(*args, **kwargs)  # type: ignore[union-attr]

    with cast(Any, values[0]).fake_mode, torch.no_grad():
        body = make_fx(call)(*values)
    if any(part.op == "get_attr" or part.target is target for part in body.graph.nodes):
        return False
    graph = node.graph
    with graph.inserting_before(node):
        results = copied(graph, body, sources, node.meta)
    replace(node, results)
    return True
