"""Every multiplication of a captured graph, as sizes whose product is its number of multiply-accumulates."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from geta_core.graph.capture import Capture
from geta_core.graph.rules.contraction import einsum_terms
from geta_core.graph.sizes import shape_of
from geta_core.quantize import QuantSite

aten = torch.ops.aten

Size = tuple[fx.Node, int]
"""One dimension of a value in the graph."""

_CONV = (aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution)
_TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
_MATMUL = (aten.linear, aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot)
_ADD_MATMUL = (aten.addmm, aten.baddbmm)
_MOVES = (
    *(aten.view, aten.reshape, aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.flatten, aten.unflatten),
    *(aten.expand, aten.contiguous, aten.clone, aten.to, aten._to_copy, aten.squeeze, aten.unsqueeze, aten.slice),
    *(aten.select, aten.split, aten.chunk, aten.split_with_sizes, aten.unbind, aten.numpy_T, aten.mT),
)


@dataclass(frozen=True)
class Product:
    """One multiplication of the graph."""

    name: str
    """Public name of the weight, or the module path where there is none."""
    op: str
    sizes: tuple[Size, ...]
    """The dimensions whose sizes multiply to the MACs of the whole example batch."""
    operand: fx.Node | None
    """The weight as it enters, possibly a part of a parameter; None for a product of activations."""
    weight_site: QuantSite | None
    input_site: QuantSite | None
    node: fx.Node
    """The operation."""


@dataclass(frozen=True)
class _Origins:
    """Where operands come from."""

    capture: Capture
    sites: dict[fx.Node, QuantSite]
    """The site of each placeholder that holds a step size."""

    def trace(self, node: fx.Node) -> tuple[str | None, QuantSite | None]:
        """Follow moves and a quantizer back: the name of the parameter, if it is one, and the quantizer's site."""
        site: QuantSite | None = None
        while isinstance(node, fx.Node):
            if node in self.capture.names:
                name = self.capture.names[node]
                return (name if name in self.capture.parameters else None), site
            packet = getattr(node.target, "overloadpacket", None)
            if packet is torch.ops.geta.fake_quantize and site is None:
                site = self.sites.get(cast(fx.Node, node.args[1]))
            elif packet not in _MOVES and node.target is not operator.getitem:
                break
            node = cast(fx.Node, node.args[0])
        return None, site

    def product(self, node: fx.Node, op: str, sizes: Sequence[Size], pair: tuple[fx.Node, fx.Node]) -> Product:
        """A product of two operands, of which one that no input reaches is the weight."""
        x, w = pair if pair[1] not in self.capture.data else (pair[1], pair[0])
        if w in self.capture.data:
            return Product(_path(node), op, tuple(sizes), None, None, None, node)
        (name, weight_site), (_, input_site) = self.trace(w), self.trace(x)
        return Product(name or _path(node), op, tuple(sizes), w, weight_site, input_site, node)


def products(capture: Capture, sites: Iterable[QuantSite]) -> list[Product]:
    """Every multiplication of data in the graph, in order; what no input reaches is computed once and not counted."""
    by_step = {id(site.quantizer.d): site for site in sites}
    holders = ((node, by_step.get(id(capture.tensors[name]))) for node, name in capture.names.items())
    origins = _Origins(capture, {node: site for node, site in holders if site is not None})
    return [found for node in capture.graph.nodes if node in capture.data for found in _found(origins, node)]


def _found(origins: _Origins, node: fx.Node) -> Iterator[Product]:
    packet = getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None
    if packet is aten.scaled_dot_product_attention:
        q, k, v = cast(Sequence[fx.Node], node.args[:3])
        yield origins.product(node, "attention scores", [*_dims(q), (k, -2)], (q, k))
        yield origins.product(node, "attention values", [*_dims(node), (k, -2)], (node, v))
    elif packet is aten.einsum:
        yield from _einsum(origins, node)
    elif packet in (*_MATMUL, *_ADD_MATMUL, *_CONV, *_TRANSPOSED):
        start = 1 if packet in _ADD_MATMUL else 0
        x, w = cast(Sequence[fx.Node], node.args[start : start + 2])
        op = str(packet).rpartition(".")[2]
        yield origins.product(node, op, _sizes(node, x, w), (x, w))


def _sizes(node: fx.Node, x: fx.Node, w: fx.Node) -> list[Size]:
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    if packet in (*_MATMUL, *_ADD_MATMUL):
        return [*_dims(node), (x, -1)]
    # A weight is [out, in / groups, window] or, transposed, [in, out / groups, window].
    backwards = packet in _TRANSPOSED or (packet is aten.convolution and bool(node.args[6]))
    return [*_dims(x if backwards else node), *_dims(w)[1:]]


def _einsum(origins: _Origins, node: fx.Node) -> Iterator[Product]:
    """The operands are contracted from left to right; each step costs the product of the sizes of all its letters."""
    operands, terms, right = einsum_terms(node)
    size_of: dict[int, Size] = {}
    for operand, term in zip(operands, terms, strict=True):
        for dim, letter in enumerate(term):
            if letter not in size_of or shape_of(operand)[dim] > 1:
                size_of[letter] = (operand, dim)
    kept, previous = set(terms[0]), operands[0]
    for position, (operand, term) in enumerate(zip(operands[1:], terms[1:], strict=True), 2):
        letters = sorted(kept | set(term))
        yield origins.product(node, "einsum", [size_of[letter] for letter in letters], (previous, operand))
        kept = set(letters) & {*right, *(letter for term in terms[position:] for letter in term)}
        previous = node


def _dims(node: fx.Node) -> list[Size]:
    return [(node, dim) for dim in range(len(shape_of(node)))]


def _path(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""
