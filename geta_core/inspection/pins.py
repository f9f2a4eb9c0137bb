"""Where the groups that must stay got their reason."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from geta_core.graph.capture import where
from geta_core.graph.groups import Group, GroupGraph
from geta_core.inspection.ops import module_of, place
from geta_core.inspection.records import Pin, Place


def pins(graph: GroupGraph) -> tuple[Pin, ...]:
    """Pinned groups, counted by family and reason."""
    found: dict[tuple[int, str], list[Group]] = {}
    for group in graph.groups:
        if group.pinned is not None:
            found.setdefault((group.family, group.pinned), []).append(group)
    search = _Search(graph)
    return tuple(
        Pin(reason, family, len(groups), _tensor(groups[0]), search.place(reason, groups[0]))
        for (family, reason), groups in found.items()
    )


def _tensor(group: Group) -> str:
    member = next((member for member in group.members if member.role == "PRODUCE"), group.members[0])
    return f"{member.name}[{member.dim}]"


class _Search:
    """Finds the node that a reason speaks of: reasons end with the place that ``where`` gives a node."""

    def __init__(self, graph: GroupGraph) -> None:
        self.graph = graph
        self.at: dict[str, list[fx.Node]] = {}
        self.outputs: list[fx.Node] = []
        for node in graph.capture.graph.nodes:
            if node.op == "call_function":
                self.at.setdefault(where(node), []).append(node)
            elif node.op == "output":
                self.outputs += node.all_input_nodes

    def place(self, reason: str, group: Group) -> Place:
        """The place of the operation that pins the group; without one, the module of the group's first tensor."""
        _, _, spot = reason.partition(", at ")
        nodes = self.at.get(spot, []) if spot else self.outputs
        ids = self._ids(group)
        for node in nodes:
            around = (node, *node.all_input_nodes)
            if any(bool(torch.isin(layer, ids).any()) for each in around for layer in self._layers(each)):
                return place(node) if spot or node.op == "call_function" else Place(module_of(node), "output", "")
        if nodes and spot:
            return place(nodes[0])
        name = _tensor(group).rpartition("[")[0]
        return Place(name.rpartition(".")[0], "", "")

    def _ids(self, group: Group) -> Tensor:
        slots = self.graph.first.space.slots
        parts = [slots[member.name, member.dim].offset + torch.tensor(member.indices) for member in group.members]
        return torch.cat(parts)

    def _layers(self, node: fx.Node) -> Iterable[Tensor]:
        value = self.graph.first.values.get(node, ())
        layers = [layer for each in value for layer in each] if isinstance(value, list) else list(value)
        return layers
