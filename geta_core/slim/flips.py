"""Float32 sums in another order may round an input to the next level: how many did?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from geta_core.graph.sizes import shape_of
from geta_core.quantize import QuantSite
from geta_core.slim.rewriting import Removal

if TYPE_CHECKING:
    from geta_core.prepared import Prepared


def flipped_share(
    prepared: Prepared, zeroed: nn.Module, slim: nn.Module, sites: Sequence[QuantSite], dead: Tensor
) -> float | None:
    """Share of quantized inputs whose level differs between the zeroed and the slimmed model, on the example.

    Args:
        prepared: gives the graph, and through it which elements stayed.
        zeroed: the model with zeros, with the quantizers of ``sites``.
        slim: the slimmed model, or a graph module.
        sites: copies of ``prepared.sites`` that belong to ``zeroed``, in the same order.
        dead: bool [num_prunable].

    Returns:
        None if no input is quantized.
    """
    inputs = [(own, site) for own, site in zip(prepared.sites, sites, strict=True) if site.kind == "input"]
    if not inputs:
        return None
    with torch.no_grad():
        before = _values([site.quantizer for _, site in inputs], zeroed, prepared)
        after = _slim_values([f"{site.module_name}.input_quantizer" for _, site in inputs], slim, prepared)
    removal = Removal(prepared.graph.first, prepared.graph.dead_ids(dead))
    differing = total = 0
    for (own, site), full, small in zip(inputs, before, after, strict=True):
        for node, a, b in zip(_nodes(prepared, own), full, small, strict=False):
            kept = _restrict(removal, node, a)
            if kept.shape == b.shape:
                step = site.quantizer.d.detach()
                differing += int(((kept / step).round() != (b / step).round()).sum())
                total += b.numel()
    return differing / total if total else 0.0


def _nodes(prepared: Prepared, site: QuantSite) -> list[fx.Node]:
    names = {
        node
        for node, name in prepared.graph.capture.names.items()
        if prepared.graph.capture.tensors[name] is site.quantizer.d
    }
    op = torch.ops.geta.fake_quantize
    nodes = prepared.graph.capture.graph.nodes
    return [n for n in nodes if getattr(n.target, "overloadpacket", None) is op and n.args[1] in names]


def _restrict(removal: Removal, node: fx.Node, value: Tensor) -> Tensor:
    for dim in range(len(shape_of(node))):
        gone = removal.gone(node, dim)
        if bool(gone.any()):
            value = value.index_select(dim, torch.nonzero(~gone).flatten().to(value.device))
    return value


@contextmanager
def _recording(modules: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    found: list[list[Tensor]] = [[] for _ in modules]

    def note(index: int) -> Any:
        return lambda module, args, result: found[index].append(result.detach())

    handles = [module.register_forward_hook(note(i)) for i, module in enumerate(modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _values(quantizers: Sequence[nn.Module], model: nn.Module, prepared: Prepared) -> list[list[Tensor]]:
    with _recording(quantizers) as found:
        prepared.inputs.run(model.eval())
    return found


def _slim_values(paths: Sequence[str], slim: nn.Module, prepared: Prepared) -> list[list[Tensor]]:
    if not isinstance(slim, fx.GraphModule):
        return _values([slim.get_submodule(path.removeprefix(".")) for path in paths], slim, prepared)
    position = {f"{path.removeprefix('.')}.d": i for i, path in enumerate(paths)}
    found: list[list[Tensor]] = [[] for _ in paths]

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if getattr(n.target, "overloadpacket", None) is torch.ops.geta.fake_quantize:
                index = position.get(str(n.args[1].target)) if isinstance(n.args[1], fx.Node) else None
                if index is not None:
                    found[index].append(result.detach())
            return result

    leaves = list(torch.utils._pytree.tree_leaves((prepared.inputs.args, prepared.inputs.kwargs)))
    Recorder(slim.eval()).run(*leaves, enable_io_processing=False)
    return found
