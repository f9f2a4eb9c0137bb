"""First pass over the graph: labels flow, and every operation ties the indices that must be removed together.

Source: the dependency graph of arXiv:2502.16638 (QADG). A quantizer is one node whose labels pass through,
so quantized and float models have the same groups.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from geta_core.errors import GetaError
from geta_core.graph.aliases import parts_of
from geta_core.graph.capture import Capture, where
from geta_core.graph.labels import (
    Layers,
    Operand,
    Space,
    are_rows,
    facing,
    from_letters,
    narrowed,
    outermost,
    tidy,
    to_letters,
    varying,
)
from geta_core.graph.rules.base import Value, is_factory, lookup, rule_for
from geta_core.graph.sizes import shape_of
from geta_core.graph.wholes import Block, rows_that_stay, whole_facing, whole_rows

if TYPE_CHECKING:
    from geta_core.graph.streams import Mean, Meeting

aten = torch.ops.aten


class Dependencies:
    """State of the first pass; op rules read and extend it."""

    def __init__(self, capture: Capture, heads: str, prune_normalized: bool) -> None:
        self.capture, self.heads, self.prune_normalized = capture, heads, prune_normalized
        self.whole: set[fx.Node | tuple[fx.Node, frozenset[int]]] = set()
        """Contractions, and other operations by their letters, in which heads that share a parameter stay whole."""
        self.joint: set[fx.Node] = set()
        """Operations in which the rows of a block cannot go one by one."""
        self._start()

    def _start(self) -> None:
        self.space = Space()
        self.values: dict[fx.Node, Value] = {}
        self.consumed: list[Tensor] = []
        """Ids of parameter indices that a contraction sums over: they are only cut."""
        self.passed: list[Tensor] = []
        """Ids of parameter indices that reach an activation: they are scored, forgotten and zeroed."""
        self.alike: list[tuple[Tensor, Tensor]] = []
        """Pairs of ids that face each other where a weight is made of several parameters: both are zeroed, or none."""
        self.quantizer_ids: list[Tensor] = []
        """Ids of per-channel quantizer parameters: they are only cut."""
        self.inexact: list[Tensor] = []
        """Ids opted in although a normalization reduces over them."""
        self.means: list[Mean] = []
        """Means over removable channels; those that reduce a residual stream until ``streams.settle``."""
        self.meetings: list[Meeting] = []
        """Where two activations face each other."""
        self.roots: dict[fx.Node, fx.Node] = {}
        """The value that a view shows a part or another shape of."""
        self.left_open: list[tuple[fx.Node, Tensor, Tensor, str]] = []
        """Contractions of blocks by what their rows share: the layer, its narrowed form, and the message of the tie."""
        self._shared: list[Block] = []
        """What faces a block element by element, the same for each of its rows: node, block, and the layer of rows."""
        self.grouped: list[Block] = []
        """Grouped convolutions of which it is open whether they read heads: what the groups read, and the first."""
        self.parted: list[tuple[fx.Node, Tensor]] = []
        """Where what the rows of a block share was pinned so that they go one by one, and the rows."""

    def layers(self, value: Any) -> Layers:
        """Layers of an argument; () for numbers and untracked values."""
        found = self.values.get(value, ()) if isinstance(value, fx.Node) else ()
        return tuple(found)  # type: ignore[arg-type]

    def operand(self, value: Any, letters: Sequence[int]) -> Operand:
        """An argument as a factor of ``combine``."""
        return Operand(self.layers(value), tuple(letters), shape_of(value), value in self.capture.data)

    def entering(self, node: fx.Node, layers: Layers) -> Layers:
        """Layers of a first argument; a parameter that takes the shape or type of an activation becomes one."""
        if node in self.capture.data and node.args[0] not in self.capture.data:
            self.passed += [layer[layer >= 0] for layer in layers]
        return layers

    def tie(self, node: fx.Node, left: Tensor, right: Tensor) -> None:
        """Tie facing elements; what faces an index that cannot be removed is pinned."""
        self.space.tie(left, right, f"meets channels that cannot be removed, at {where(node)}")

    def pin(self, node: fx.Node, layer: Tensor, why: str) -> None:
        """Pin the ids of a layer, with the place in the message."""
        self.space.pin(layer, f"{why}, at {where(node)}")

    def run(self) -> None:
        """Visit every node in order; once more where heads turn out to be whole that share a parameter.

        Where the heads of a value meet a parameter that all of them share (a table of relative positions), the same
        index goes from every head and from the parameter; but where anything else that is done with the heads makes
        each of them a whole, a head goes whole and the parameter stays.
        """
        while True:
            self._start()
            self._visit_all()
            if not self._decided():
                break
        for _, layer, narrow, message in self.left_open:
            self.space.tie(layer, narrow, message)

    def _decided(self) -> bool:
        """Decide what the ties of this pass make whole, one kind of question at a time; whether anything is new."""
        joint, whole = rows_that_stay(self.space, self.parted), set[Any]()
        if self.heads == "head" and not joint and (self.left_open or self._shared or self.grouped):
            _, component = self.space.components()
            opened = [(node, layer, narrow) for node, layer, narrow, _ in self.left_open]
            whole = whole_rows(component, opened) | whole_facing(component, self._shared)
            if not whole and self._shared:
                while self._shared:
                    self._face(*self._shared.pop(0))
                _, component = self.space.components()
                whole = whole_rows(component, opened)  # what faces a head may have made it a whole
            if not whole:
                whole = whole_rows(component, self.grouped)
                joint = set() if whole else {node for node, _, _ in self.grouped}
                # What was decided while their groups made different channels is asked again.
                self.whole = set() if joint else self.whole
        self.joint |= joint
        self.whole |= whole
        return bool(joint or whole)

    def _visit_all(self) -> None:
        for node in self.capture.graph.nodes:
            if node.op == "placeholder":
                name, start = self.capture.names.get(node), self.space.size
                self.values[node] = self.space.layers_of(name, shape_of(node)) if name is not None else ()
                if name not in self.capture.parameters and self.space.size > start:
                    self.space.mark(start, self.space.size, 1)
            elif node.op == "output":
                for leaf in node.all_input_nodes:
                    for layer in self.layers(leaf):
                        self.space.pin(layer, "reaches the model's output")
            elif node.op == "call_function":
                self.visit(node)

    def visit(self, node: fx.Node) -> None:
        """Apply the rule of one call; calls without any labelled input stay untracked."""
        if not self.tracked(node) or self._unruled(node):
            self.values[node] = ()
            return
        value = rule_for(node).labels(self, node)
        several = isinstance(node.meta["val"], (list, tuple))
        if value and several != isinstance(value, list):
            wanted = "a list with the layers of each result" if several else "the layers of its one result"
            raise GetaError(
                f"the rule of {node.target} must return {wanted}, but it returned {value!r}, in {where(node)}"
            )
        self.values[node] = list(map(self._settled, value)) if isinstance(value, list) else self._settled(value)
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            self._follow_aliases(node, schema)
        elif node.target is operator.getitem:
            source = cast(fx.Node, node.args[0])
            self.roots[node] = self.roots.get(source, source)

    def tracked(self, node: fx.Node) -> bool:
        """Whether a call makes a tensor of labelled inputs; sizes and everything without labels stay untracked."""
        tensors = isinstance(node.meta.get("val"), (Tensor, list, tuple))
        return tensors and (is_factory(node.target) or any(self.values.get(source) for source in node.all_input_nodes))

    def _unruled(self, node: fx.Node) -> bool:
        """Whether a call without a rule reads only values that the code makes: they keep their sizes then."""
        if lookup(node.target) is not None:
            return False
        found = [layer for source in node.all_input_nodes for layer in self._flat(source)]
        if not all(map(self.space.is_made, found)):
            return False
        for layer in found:
            self.pin(node, layer, "is a constant whose size must stay")
        return True

    def _flat(self, node: fx.Node) -> list[Tensor]:
        value = self.values.get(node, ())
        return [layer for part in value for layer in part] if isinstance(value, list) else list(value)

    def _settled(self, layers: Layers) -> Layers:
        """Where a value that the code makes and a tensor share a dimension, the tensor's label says what may go."""
        made = [layer for layer in layers if self.space.is_made(layer)] if len(layers) > 1 else []
        kept = []
        for layer in layers:
            others = [other for other in layers if other is not layer and varying(other) & varying(layer)]
            if any(layer is m for m in made) and others:
                self.space.pin(layer, "is a constant whose size must stay")
            else:
                kept.append(layer)
        return tuple(kept)

    def _follow_aliases(self, node: fx.Node, schema: Any) -> None:
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            return
        alias = schema.arguments[0].alias_info if schema.arguments else None
        if alias is None:
            return
        root = self.roots.get(first)
        if not alias.is_write:
            self.roots[node] = first if root is None else root
            return
        before, self.values[first] = self._flat(first), self.values[node]
        if root is not None and self._read_again(node, first, root) and not self._fits(node, first, before):
            for layer in (*self._flat(root), *self._flat(node)):
                self.pin(node, layer, "is written in place into a part of a value")

    def _fits(self, node: fx.Node, view: fx.Node, before: list[Tensor]) -> bool:
        """Whether what is written into a part has the labels that the part had, and every other part has them too."""
        parts = parts_of(view, self.roots[view])
        whole = {dim for layer in self._flat(self.roots[view]) for dim in varying(layer)}
        same = all(
            any(new.shape == old.shape and bool((new == old).all()) for old in before) for new in self._flat(node)
        )
        return bool(parts) and same and not whole & {dim for dim, _ in parts}

    def _read_again(self, node: fx.Node, view: fx.Node, root: fx.Node) -> bool:
        """Whether anything reads a value after one of its views was written, other than through that view."""
        same = [other for other, base in self.roots.items() if base is root and other is not view]
        return any(user > node for other in (root, *same) for user in other.users)

    def combine(self, node: fx.Node, operands: Sequence[Operand], out: Sequence[int]) -> Layers:
        """Labels of an einsum-like operation; ties what its shared and contracted letters tie.

        Args:
            node: the operation, for messages and to know whether it is computed from data.
            operands: the factors, each dimension named by a letter (0, 1, ...); letters are shared by name.
            out: letters of the result; letters absent here are contracted.

        Returns:
            The layers of the result, one dimension per letter of ``out``.
        """
        count = 1 + max((letter for o in operands for letter in o.letters), default=-1)
        spread = [[to_letters(layer, o.letters, count) for layer in o.layers] for o in operands]
        sizes = [[o.size(letter) for letter in range(count)] for o in operands]
        contracted = frozenset(range(count)) - frozenset(out)
        alone: list[Tensor] = []
        # Once more, because a layer that was narrowed may have left another one with nothing to face.
        for i in (*range(len(spread)), *range(len(spread))):
            fitted = [self._fitted(node, layer, i, spread, sizes, contracted, alone) for layer in spread[i]]
            spread[i] = [layer for layer in fitted if layer is not None]
        if self.heads == "head":
            self._part_rows(node, spread)
            self._keep_heads(node, spread, contracted)
        for i, left in enumerate(spread):
            others = {dim for right in (*spread[:i], *spread[i + 1 :]) for layer in right for dim in varying(layer)}
            self._tie_within(left, contracted | others)
            for j, right in enumerate(spread[i + 1 :], i + 1):
                for a, b in itertools.product(left, right):
                    if varying(a) & varying(b):
                        before = len(self.space.ties)
                        self._meet(node, a, b, contracted)
                        if operands[i].data and operands[j].data and len(self.space.ties) > before:
                            self.meetings.append((node, i, j, before))
        self._mark(node, operands, spread, contracted)
        # What faces nothing has to stay: from here on it is like what has no label.
        spread = [[layer for layer in layers if not any(layer is other for other in alone)] for layers in spread]
        return tidy(from_letters(layer, out) for layer in outermost(spread, contracted, self.space))

    def _meet(self, node: fx.Node, a: Tensor, b: Tensor, contracted: frozenset[int]) -> None:
        """Tie two layers that face each other; what all rows of a block share is left open first.

        Rows that are wholes are not tied to each other by what they share: that stays, and each of them may go.
        """
        shared, block = sorted((a, b), key=lambda layer: len(varying(layer)))
        summed = bool((varying(a) | varying(b)) & contracted)
        if self.heads != "head" or summed or not varying(shared) < varying(block):
            self._face(node, a, b, alike=not summed)
        elif (node, varying(shared)) in self.whole:
            self.space.tie_across(block, varying(shared), f"shares an index with others, at {where(node)}")
            self.pin(node, shared, "is shared by several heads")
        else:
            self._shared.append((node, block, shared))

    def _face(self, node: fx.Node, a: Tensor, b: Tensor, *, alike: bool = True) -> None:
        self.tie(node, a, b)
        if alike and node not in self.capture.data:
            self.alike.append(facing(a, b))

    def _fitted(
        self,
        node: fx.Node,
        layer: Tensor,
        index: int,
        spread: list[list[Tensor]],
        sizes: list[list[int]],
        contracted: frozenset[int],
        alone: list[Tensor],
    ) -> Tensor | None:
        """Ties inside one layer that the shapes of the other operands ask for; None for one that says nothing more.

        ``alone`` gets the layers that no other operand has a label for.
        """
        uncovered = {
            letter
            for letter in varying(layer)
            for other, others in enumerate(spread)
            if other != index and sizes[other][letter] > 1 and not any(letter in varying(b) for b in others)
        }
        message = f"meets channels that cannot be removed, at {where(node)}"
        if uncovered and varying(layer) - uncovered:
            layer = self.space.tie_across(layer, uncovered, message)
        elif uncovered:
            self.space.pin(layer, message)
            alone.append(layer)
            if self.space.is_made(layer):
                return None
        inner, outer = varying(layer) & contracted, varying(layer) - contracted
        if inner and outer:
            shared = {letter for letter in outer if sum(size[letter] > 1 for size in sizes) > 1}
            if self.heads == "head" and (shared == outer or node in self.whole):
                return self.space.tie_across(layer, inner, message)
            narrow = narrowed(layer, outer)
            self.left_open.append((node, layer, narrow, message))
            return narrow
        return layer

    def _keep_heads(self, node: fx.Node, spread: list[list[Tensor]], contracted: frozenset[int]) -> None:
        """Constants that all heads share, such as the angles of a rotary embedding, make a head a whole.

        What the code makes for each index of a contraction that is not summed over follows the heads instead.
        """
        if not any(len(varying(layer)) > 1 for layers in spread for layer in layers):
            return
        constants = [layer for layers in spread for layer in layers if varying(layer) and self.space.is_constant(layer)]
        if contracted:
            constants = [a for a in constants if varying(a) & contracted or not self.space.is_made(a)]
        dropped: list[Tensor] = []
        for layers in spread:
            for position, layer in enumerate(layers):
                for shared in constants:
                    if varying(shared) < varying(layer):
                        self.pin(node, shared, "is a constant that several heads share")
                        dims = sorted(varying(shared))
                        layer = self.space.tie_across(layer, dims, f"shares a constant with its head, at {where(node)}")
                        dropped.append(shared)
                layers[position] = layer
        for layers in spread:
            layers[:] = [layer for layer in layers if not any(layer is other for other in dropped)]

    def _part_rows(self, node: fx.Node, spread: list[list[Tensor]]) -> None:
        """Heads that share their inner indices, flattened with them, go one by one; what they share stays.

        Such an index has two labels and would go with either, which would leave one group of all heads. It matters only
        where the index meets a label of another operand: until then both go on, and may be parted by a view.
        """
        for i, layers in enumerate(spread if node not in self.joint else ()):
            met = {dim for other in (*spread[:i], *spread[i + 1 :]) for layer in other for dim in varying(layer)}
            for rows, shared in itertools.permutations(list(layers), 2):
                fixed = any(map(self.space.is_constant, (rows, shared)))
                if varying(rows) & met and not fixed and are_rows(rows, shared):
                    self.pin(node, shared, "is shared by several heads")
                    self.parted.append((node, rows))
                    layers[:] = [layer for layer in layers if layer is not shared]

    def _tie_within(self, layers: Sequence[Tensor], met: frozenset[int]) -> None:
        """An index with two labels (two dimensions flattened into one) that meets a third goes with either."""
        for a, b in itertools.combinations(layers, 2):
            if varying(a) & varying(b) & met:
                self.space.ties.append(facing(a, b))

    def _mark(
        self, node: fx.Node, operands: Sequence[Operand], spread: list[list[Tensor]], contracted: frozenset[int]
    ) -> None:
        fixed = [
            not o.data and all(map(self.space.is_constant, layers)) for o, layers in zip(operands, spread, strict=True)
        ]
        for i, (operand, layers) in enumerate(zip(operands, spread, strict=True)):
            if operand.data:
                continue
            # A map of a constant (a table of coordinates) makes an activation as a map of data does.
            active = node in self.capture.data or (bool(contracted) and any((*fixed[:i], *fixed[i + 1 :])))
            for layer in layers:
                if varying(layer) & contracted:
                    self.consumed.append(layer[layer >= 0])
                elif active:
                    self.passed.append(layer[layer >= 0])
