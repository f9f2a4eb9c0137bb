"""Second pass: which group, if its PRODUCE members are zero, makes each element of each activation exactly zero?

An abstract interpretation over the graph. A value carries layers like the labels do, of component numbers: an
element is
exactly zero whenever one of the components named in its layers is. Where an operation *eliminates* a removable index (a
contraction or a sum), the element removed there must be exactly zero, else removal would change the result: such
groups are
pinned. Values that happen to be zero now (a fresh bias) count as live.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph.aliases import parts_of
from geta_core.graph.capture import where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand, collapse, from_letters, tidy, to_letters, varying
from geta_core.graph.rules.base import Value, lookup, rule_for
from geta_core.graph.sizes import shape_of
from geta_core.graph.streams import Mean

ALWAYS = -2
"""Stands for an element that is zero whatever is removed."""


class Zeros:
    """State of the second pass."""

    def __init__(self, first: Dependencies, component: Tensor, count: int, produce: Tensor) -> None:
        self.first, self.capture = first, first.capture
        self.component, self.count = component, count
        self.produce = produce
        """Per id: whether zeroing a group sets this index of its parameter to zero."""
        self.values: dict[fx.Node, Value] = {}
        self.reasons: dict[int, str] = {}
        """Components that may not be removed, with the reason."""
        self.unbounded = set[int]()
        """Components whose zeros an operation turns into something that is not finite: a logarithm, a divisor."""
        self.numbers: dict[fx.Node, Tensor | None] = {}
        """Single numbers that come from buffers and constants alone."""
        self.live: list[tuple[Mean, Tensor]] = []
        """Means, each with components of it that are not proved to be zero before it."""
        self.written = _written(self.capture.graph)
        """Values that are written in place, and everything that shares their memory."""
        self._labels: dict[fx.Node, Layers] = {}

    def zeros(self, value: Any) -> Layers:
        """Zero layers of an argument."""
        found = self.values.get(value, ()) if isinstance(value, fx.Node) else ()
        return tuple(found)  # type: ignore[arg-type]

    def labels(self, value: Any) -> Layers:
        """Label layers of an argument as components."""
        if not isinstance(value, fx.Node) or isinstance(self.first.values.get(value), list):
            return ()
        if value not in self._labels:
            self._labels[value] = tidy(map(self.as_components, self.first.layers(value)))
        return self._labels[value]

    def as_components(self, layer: Tensor) -> Tensor:
        """Replace ids by their components."""
        return collapse(torch.where(layer >= 0, self.component[layer.clamp(min=0)], layer))

    def run(self) -> None:
        """Visit every node in order."""
        for node in self.capture.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._parameter(node)
            elif node.op == "call_function":
                if self.first.tracked(node) and lookup(node.target) is not None:
                    self.values[node] = _ranked(node, rule_for(node).zeros(self, node))
                    if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
                        self._written(node)
                else:
                    self.values[node] = ()

    def _written(self, node: fx.Node) -> None:
        """In place: the first argument is the result now; nothing is known of what shares its memory."""
        first, roots = cast(fx.Node, node.args[0]), self.first.roots
        root = roots.get(first, first)
        whole = self._with_part(root, first, node) if root is not first else ()
        for other in (root, *(view for view, base in roots.items() if base is root)):
            if other in self.values:
                self.values[other] = ()
        self.values[root], self.values[first] = whole, self.values[node]

    def _with_part(self, root: fx.Node, view: fx.Node, node: fx.Node) -> Layers:
        """Zeros of a value of which a part was written: those of before that what was written has too."""
        parts = parts_of(view, root)
        if not parts:
            return ()
        dims, written = {dim for dim, _ in parts}, list(self.zeros(node))
        for dim, dropped in parts:
            written = [layer.unsqueeze(dim) for layer in written] if dropped else written
        kept = tuple(layer for layer in self.zeros(root) if not varying(layer) & dims)
        return meet(kept, tuple(layer for layer in written if not varying(layer) & dims))

    def _parameter(self, node: fx.Node) -> Layers:
        if self.capture.names.get(node) not in self.capture.parameters:
            return ()
        layers = []
        for layer in self.first.layers(node):
            produced = torch.where(self.produce[layer], self.component[layer], torch.full_like(layer, -1))
            layers.append(produced)
        return tidy(layers)

    def require_zero(self, node: fx.Node, operands: Sequence[tuple[Any, Operand]], eliminated: frozenset[int]) -> None:
        """Pin components removed along ``eliminated`` letters whose elements no operand proves to be zero."""
        count = 1 + max((letter for _, o in operands for letter in o.letters), default=-1)
        present = torch.zeros(self.count, dtype=torch.bool)
        proved = torch.zeros(self.count, dtype=torch.bool)
        for value, operand in operands:
            here = torch.zeros(self.count, dtype=torch.bool)
            bad = torch.zeros(self.count, dtype=torch.bool)
            zeros = [to_letters(layer, operand.letters, count) for layer in self.zeros(value)]
            for label in self.labels(value):
                label = to_letters(label, operand.letters, count)
                if not varying(label) & eliminated:
                    continue
                here[label[label >= 0]] = True
                bad[_unproved(label, zeros)] = True
            present |= here
            proved |= here & ~bad
        for index in torch.nonzero(present & ~proved).flatten().tolist():
            self.reasons.setdefault(index, f"is not exactly zero where it is consumed, at {where(node)}")

    def require_zero_mean(self, node: fx.Node) -> None:
        """Note what a mean is taken over without being zero where it is removed."""
        for mean in self.first.means:
            if mean.node is node:
                parts = _unproved(self.as_components(mean.layer), self.zeros(node.args[0]))
                if parts.numel():
                    self.live.append((mean, parts.unique()))

    def contract(self, node: fx.Node, operands: Sequence[tuple[Any, Operand]], out: Sequence[int]) -> Layers:
        """Zeros of a product summed over the letters that are not in ``out``: zero where one factor always is."""
        count = 1 + max((letter for _, o in operands for letter in o.letters), default=-1)
        eliminated = frozenset(range(count)) - frozenset(out)
        self.require_zero(node, operands, eliminated)
        passing = []
        for value, operand in operands:
            for layer in self.zeros(value):
                spread = to_letters(layer, operand.letters, count)
                if not varying(spread) & eliminated:
                    passing.append(from_letters(spread, out))
        return tidy(passing)


def _written(graph: fx.Graph) -> set[fx.Node]:
    roots: dict[fx.Node, fx.Node] = {}
    written = set()
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_function" or not isinstance(source, fx.Node):
            continue
        schema = getattr(node.target, "_schema", None)
        alias = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
        if alias is not None or schema is None:
            roots[node] = roots.get(source, source)
        if schema is not None and schema.is_mutable:
            written.add(roots[node] if alias is not None else source)
    return {node for node in graph.nodes if roots.get(node, node) in written}


def _ranked(node: fx.Node, value: Value) -> Value:
    """Give every layer the rank of the value: rules may leave out leading dimensions."""
    if isinstance(value, list):
        return value
    rank = len(shape_of(node))
    return tuple(layer.reshape([1] * (rank - layer.dim()) + list(layer.shape)) for layer in value)


def _unproved(label: Tensor, zeros: Sequence[Tensor]) -> Tensor:
    """Components of ``label`` with an element that no zero layer covers.

    Layers that vary only where the label does are tried first: with the others the comparison grows to the size of the
    whole value, and few of them name a component that is still open.
    """
    dims, left = varying(label), label >= 0
    for zero in zeros:
        if varying(zero) <= dims:
            left = left & (zero != label) & (zero != ALWAYS)
    named = torch.cat([label[left], torch.full((1,), ALWAYS)])
    wide = [zero for zero in zeros if not varying(zero) <= dims and bool(torch.isin(zero, named).any())]
    if not wide or len(named) == 1:
        return label[left]
    shape = torch.broadcast_shapes(label.shape, *(zero.shape for zero in wide))
    left = left.expand(shape)
    for zero in wide:
        left = left & (zero != label) & (zero != ALWAYS)
    return label.expand(shape)[left]


def meet(left: Layers, right: Layers) -> Layers:
    """Zeros of a sum: both must be zero for the same component. Ranks are aligned from the right."""
    rank = max((layer.dim() for layer in (*left, *right)), default=0)
    found = []
    for a in left:
        for b in right:
            a, b = (x.reshape([1] * (rank - x.dim()) + list(x.shape)) for x in (a, b))
            both = torch.where(a == b, a, torch.full_like(a, -1))
            both = torch.where(a == ALWAYS, b, torch.where(b == ALWAYS, a, both))
            found.append(both)
    return tidy(found)
