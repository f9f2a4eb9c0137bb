"""From the captured graph to the boxes of the picture.

A box starts where a parameter is multiplied or looked up, where several values meet, or where a value is used more
than once. What follows on one path (norms, activations, pooling) is folded into the box in front of it, and so is a
part with one way in and one way out (a norm written by hand, a rotary embedding). Moves of elements are not shown.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from geta_core.accounting.products import Product
from geta_core.graph.groups import GroupGraph
from geta_core.graph.sizes import shape_of
from geta_core.inspection.ops import module_of, spelled
from geta_core.inspection.records import Block, Kind
from geta_core.prepared import Prepared

aten = torch.ops.aten

HIDDEN = frozenset(
    (
        *(aten.view, aten.reshape, aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.flatten),
        *(aten.unflatten, aten.expand, aten.expand_as, aten.contiguous, aten.clone, aten.to, aten._to_copy),
        *(aten.squeeze, aten.unsqueeze, aten.slice, aten.select, aten.split, aten.chunk, aten.split_with_sizes),
        *(aten.unbind, aten.narrow, aten.mT, aten.numpy_T, aten.movedim, aten.alias, aten.detach, aten.detach_),
        *(aten.dropout, aten.feature_dropout, aten.lift_fresh_copy, torch.ops.geta.fake_quantize, operator.getitem),
    )
)
"""Operations that only move or relay values, or do nothing in eval mode; quantizers are marks on their layer."""
LOOKUPS = (aten.embedding,)


def fold(prepared: Prepared) -> tuple[tuple[Block, ...], tuple[tuple[int, int], ...]]:
    """Boxes in the order of the computation, and the edges between them."""
    folding = _Folding(prepared.graph.capture.graph.nodes, prepared)
    folding.contract()
    return folding.blocks(), folding.edges()


class _Folding:
    """Sets of nodes, contracted until none of the rules below applies."""

    def __init__(self, nodes: Iterable[fx.Node], prepared: Prepared) -> None:
        self.graph: GroupGraph = prepared.graph
        self.products: dict[fx.Node, Product] = {product.node: product for product in prepared.account.products}
        shown = _reaching_output(nodes, self.graph.capture.data)
        self.order = {node: position for position, node in enumerate(shown)}
        # A set of nodes is named by the position of its first node.
        self.nodes = {position: [node] for node, position in self.order.items()}
        self.before: dict[int, set[int]] = {position: set() for position in self.nodes}
        self.after: dict[int, set[int]] = {position: set() for position in self.nodes}
        for node, position in self.order.items():
            for source in node.all_input_nodes:
                if source in self.order:
                    self.before[position].add(self.order[source])
                    self.after[self.order[source]].add(position)
        self.firm = {position for node, position in self.order.items() if self._firm(node)}

    def _firm(self, node: fx.Node) -> bool:
        return node.op != "call_function" or node in self.products or _packet(node) in LOOKUPS

    def contract(self) -> None:
        """Apply the rules until nothing changes."""
        changed = True
        while changed:
            changed = False
            for name in list(self.nodes):
                if name in self.nodes and name not in self.firm and self._contract_one(name):
                    changed = True

    def _contract_one(self, name: int) -> bool:
        before = self.before[name]
        if len(before) == 1:
            (source,) = before
            if len(self.after[source]) == 1 or all(_packet(node) in HIDDEN for node in self.nodes[name]):
                self._absorb(source, name)
                return True
        elif len(before) > 1:
            return self._absorb_branches(name)
        return False

    def _absorb_branches(self, name: int) -> bool:
        """Branches that start at one value and end here belong to what is here."""
        loose = {each for each in self.before[name] if self._is_branch(each, name)}
        for each in sorted(loose):
            entry = self.before[each]
            same = {other for other in loose if self.before[other] == entry}
            if self.before[name] <= same | entry and (len(same) > 1 or entry <= self.before[name]):
                for other in sorted(same):
                    self._absorb(name, other)
                return True
        return False

    def _is_branch(self, name: int, end: int) -> bool:
        return name not in self.firm and len(self.before[name]) == 1 and self.after[name] == {end}

    def _absorb(self, into: int, gone: int) -> None:
        self.nodes[into] = sorted(self.nodes[into] + self.nodes.pop(gone), key=self.order.__getitem__)
        for ends, starts in ((self.before, self.after), (self.after, self.before)):
            for other in ends.pop(gone):
                starts[other].discard(gone)
                if other != into:
                    starts[other].add(into)
                    ends[into].add(other)
        self.firm.discard(gone)

    def _names(self) -> dict[int, int]:
        ordered = sorted(self.nodes, key=lambda name: self.order[self.nodes[name][0]])
        return {name: number for number, name in enumerate(ordered)}

    def edges(self) -> tuple[tuple[int, int], ...]:
        """Pairs of box numbers, sorted."""
        number = self._names()
        return tuple(sorted((number[a], number[b]) for a, ends in self.after.items() for b in ends))

    def blocks(self) -> tuple[Block, ...]:
        """The boxes."""
        inside: dict[str, set[int]] = {}
        for name, nodes in self.nodes.items():
            for node in nodes:
                if _packet(node) not in HIDDEN:
                    inside.setdefault(module_of(node), set()).add(name)
        whole = {module for module, names in inside.items() if len(names) == 1}
        return tuple(self._block(number, name, whole) for name, number in self._names().items())

    def _block(self, number: int, name: int, whole: set[str]) -> Block:
        nodes = self.nodes[name]
        visible = [node for node in nodes if _packet(node) not in HIDDEN] or nodes[:1]
        firm, step = name in self.firm, name not in self.firm and len(self.before[name]) == 1
        main = visible[-1] if step else visible[0]
        chips = _chips(visible[1:] if firm else visible, whole - {module_of(visible[0])} if firm else whole)
        title, rest = (_title(visible[0]), chips) if firm else (chips[0], chips[1:])
        family, channels, free, pinned = channels_of(self.graph, main)
        product = self.products.get(main)
        sites = (product.weight_site, product.input_site) if product is not None else ()
        return Block(
            id=number,
            kind=self._kind(main, firm, len(self.before[name])),
            module=module_of(main),
            operation=title,
            chips=tuple(rest),
            quantized=tuple(site.kind for site in sites if site is not None),
            shape=shape_of(main),
            family=family,
            channels=channels,
            free=free,
            pinned=pinned,
        )

    def _kind(self, main: fx.Node, firm: bool, inputs: int) -> Kind:
        if main.op != "call_function":
            return "input" if main.op == "placeholder" else "output"
        product = self.products.get(main)
        if firm and (product is None or product.operand is not None):
            return "weight"
        return "join" if inputs > 1 else "step"


def _packet(node: fx.Node) -> object:
    return getattr(node.target, "overloadpacket", node.target)


def _reaching_output(nodes: Iterable[fx.Node], data: set[fx.Node]) -> list[fx.Node]:
    """The nodes with a value made from the inputs that the output depends on, in order."""
    wanted: set[fx.Node] = set()
    for node in reversed(list(nodes)):
        if node.op == "output" or (node in wanted and node in data):
            wanted.add(node)
            wanted.update(node.all_input_nodes)
    return [node for node in nodes if node in wanted and (node in data or node.op == "output")]


def _title(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.name) if node.op == "placeholder" else "output"
    return _short(node)


def _short(node: fx.Node) -> str:
    """The bare name of an operation: ``conv2d`` for aten.conv2d.default, ``relu`` for aten.relu_.default."""
    bare = str(_packet(node)).rpartition(".")[2] if hasattr(node.target, "overloadpacket") else spelled(node)
    return bare.strip("_")


def _chips(nodes: list[fx.Node], whole: set[str]) -> list[str]:
    """Names of operations; several of one module that stand nowhere else go by the module's class."""
    chips: list[str] = []
    position = 0
    while position < len(nodes):
        module = module_of(nodes[position])
        end = position
        while end < len(nodes) and module_of(nodes[end]) == module:
            end += 1
        run = nodes[position:end]
        if len(run) > 1 and module in whole:
            found = [_class_of(run[0])]
        else:
            found = [_short(node) for node in run]
        chips += [chip for at, chip in enumerate(found) if (chips[-1:] if at == 0 else found[at - 1 : at]) != [chip]]
        position = end
    return chips


def _class_of(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(getattr(stack[-1][1], "__name__", stack[-1][1])).rpartition(".")[2]


def channels_of(graph: GroupGraph, node: fx.Node) -> tuple[int | None, int, int, str | None]:
    """Family, number of labelled channels, how many of them are free, and why the others are not."""
    source = node.all_input_nodes[0] if node.op == "output" and node.all_input_nodes else node
    value = graph.first.values.get(source, ())
    layers = [layer for each in value for layer in each] if isinstance(value, list) else list(value)
    best: tuple[int | None, int, int, str | None] = (None, 0, 0, None)
    for layer in layers:
        found = _of_layer(graph, layer)
        if best[1] == 0 or (found[2], found[1]) > (best[2], best[1]):
            best = found
    return best


def _of_layer(graph: GroupGraph, layer: Tensor) -> tuple[int | None, int, int, str | None]:
    ids = layer[layer >= 0]
    component = graph.component[ids]
    free = graph.number[component] >= 0
    families = graph.family[component[free] if bool(free.any()) else component]
    families = families[families >= 0]
    family = int(families.mode().values) if families.numel() else None
    stuck = component[~free]
    reason = graph.reasons.get(int(stuck[0]), "is not zeroed as a whole") if stuck.numel() else None
    if reason is None and ids.numel() < layer.numel():
        reason = "no parameter index stands for them"
    return family, layer.numel(), int(free.sum()), reason
