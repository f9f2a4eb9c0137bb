"""The one accountant: multiply-accumulates and bit operations, counted from the captured graph.

Definitions (arXiv:2502.16638, metric BOPs; DESIGN names): ``paper`` counts the products of convolutions and linear
layers with
their weights, each MAC weighing weight bits times input bits, over the dense float model's MACs x 32 x 32; ``all``
adds the
products of two activations (attention). Counts are per example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from geta_core.graph.capture import Capture
from geta_core.graph.dependency import shape_of
from geta_core.graph.groups import GroupGraph
from geta_core.quantize import QuantSite
from geta_core.slim.graph_module import Removal

aten = torch.ops.aten
FLOAT_BITS = 32

_LINEAR = (aten.linear,)
_CONV = (aten.conv1d, aten.conv2d, aten.conv3d)
_TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
_PRODUCT = (aten.matmul, aten.mm, aten.bmm)
_MOVES = (
    *(aten.view, aten.reshape, aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.flatten, aten.unflatten),
    *(aten.expand, aten.contiguous, aten.clone, aten.to, aten._to_copy, aten.squeeze, aten.unsqueeze, aten.slice),
    *(aten.select, aten.split, aten.chunk, aten.split_with_sizes, aten.unbind),
)


@dataclass(frozen=True)
class Product:
    """One multiplication of the graph: MACs = positions x product of the operand's sizes."""

    name: str
    """Public name of the weight, or the module path of a product of activations."""
    op: str
    operand: fx.Node
    """The node whose sizes, times ``positions``, give the MACs."""
    positions: float
    """How often each element of the operand is used, per example."""
    weight: str | None
    """Name of the weight tensor; None for a product of activations."""
    weight_site: QuantSite | None
    input_site: QuantSite | None
    extra: tuple[tuple[fx.Node, int], ...] = ()
    """Further (node, dimension) sizes that multiply the MACs."""


@dataclass(frozen=True)
class Layer:
    """One row of the account."""

    name: str
    op: str
    macs: float
    weight_bits: float
    input_bits: float
    weights: int
    """Elements of the weight, 0 for a product of activations."""
    counted: bool
    """Whether definition ``paper`` counts it."""

    @property
    def bops(self) -> float:
        """Bit operations per example."""
        return self.macs * self.weight_bits * self.input_bits


def products(capture: Capture, sites: Iterable[QuantSite], batch: int) -> list[Product]:
    """Every multiplication in the graph, in order."""
    by_step = {id(site.quantizer.d): site for site in sites}
    owner = {node: by_step.get(id(capture.tensors[name])) for node, name in capture.names.items()}
    found = []
    for node in capture.graph.nodes:
        if node.op != "call_function":
            continue
        packet = getattr(node.target, "overloadpacket", None)
        if packet is aten.scaled_dot_product_attention:
            found += _attention(node, batch)
        elif packet in (*_LINEAR, *_CONV, *_TRANSPOSED, *_PRODUCT, aten.addmm, aten.baddbmm):
            shift = 1 if packet in (aten.addmm, aten.baddbmm) else 0
            found.append(_product(capture, owner, node, cast(Sequence[fx.Node], node.args[shift : shift + 2]), batch))
    return found


def _product(
    capture: Capture, owner: dict[fx.Node, QuantSite | None], node: fx.Node, pair: Sequence[fx.Node], batch: int
) -> Product:
    packet = node.target.overloadpacket  # type: ignore[union-attr]
    x, w = pair
    if packet in _PRODUCT and w in capture.data and x not in capture.data:
        x, w = w, x
    weight, weight_site = _origin(capture, owner, w)
    _, input_site = _origin(capture, owner, x)
    out, size = shape_of(node), math.prod(shape_of(w))
    op = str(packet).rpartition(".")[2]
    if weight is None:
        contracted = shape_of(pair[0])[-1]
        return Product(_path(node), op, node, contracted / batch, None, None, None, ((pair[0], -1),))
    if packet in _TRANSPOSED:
        positions = math.prod(shape_of(x)) / shape_of(w)[0]
    elif packet in _CONV:
        positions = math.prod(out) / shape_of(w)[0]
    else:
        positions = math.prod(out) * shape_of(x)[-1] / size if packet in _LINEAR else math.prod(shape_of(x)[:-1])
    return Product(weight, op, w, positions / batch, weight, weight_site, input_site)


def _attention(node: fx.Node, batch: int) -> list[Product]:
    q, k, v = cast(Sequence[fx.Node], node.args[:3])
    keys, queries = shape_of(k)[-2], shape_of(q)[-2]
    scores = Product(_path(node), "attention scores", q, keys / batch, None, None, None)
    mixed = Product(_path(node), "attention values", v, queries / batch, None, None, None)
    return [scores, mixed]


def _path(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _origin(
    capture: Capture, owner: dict[fx.Node, QuantSite | None], node: fx.Node
) -> tuple[str | None, QuantSite | None]:
    """Follow moves and a quantizer back: the weight's name (None for an activation), and the quantizer's site."""
    site: QuantSite | None = None
    while isinstance(node, fx.Node):
        if node in capture.names:
            return (capture.names[node] if capture.names[node] in capture.parameters else None), site
        packet = getattr(node.target, "overloadpacket", None)
        if packet is torch.ops.geta.fake_quantize and site is None:
            site = owner.get(cast(fx.Node, node.args[1]))
        elif packet not in _MOVES and not _is_getitem(node):
            return None, site
        node = cast(fx.Node, node.args[0])
    return None, site


def _is_getitem(node: fx.Node) -> bool:
    import operator

    return node.op == "call_function" and node.target is operator.getitem


class Account:
    """Counts of a captured model under any set of removed groups and any bit widths."""

    def __init__(self, graph: GroupGraph, sites: Sequence[QuantSite], batch: int) -> None:
        self.graph, self.sites = graph, sites
        self.products = products(graph.capture, sites, batch)

    def layers(self, dead: Tensor, bits: dict[str, float]) -> list[Layer]:
        """One row per multiplication.

        Args:
            dead: bool [num_prunable], the removed groups.
            bits: bit width of each site by its name.
        """
        removal = Removal(self.graph.first, self.graph.dead_ids(dead))
        return [self._layer(product, removal, bits) for product in self.products]

    def _layer(self, product: Product, removal: Removal, bits: dict[str, float]) -> Layer:
        sizes = [removal.size(product.operand, dim) for dim in range(len(shape_of(product.operand)))]
        macs = product.positions * math.prod(sizes)
        for node, dim in product.extra:
            full = shape_of(node)[dim]
            macs *= removal.size(node, dim % len(shape_of(node))) / full
        weight_bits = bits[product.weight_site.name] if product.weight_site else FLOAT_BITS
        input_bits = bits[product.input_site.name] if product.input_site else FLOAT_BITS
        counted = product.weight is not None
        return Layer(
            product.name, product.op, macs, weight_bits, input_bits, math.prod(sizes) if counted else 0, counted
        )

    def parameters(self, dead: Tensor) -> int:
        """Elements of all parameters that stay (quantizers' own excluded)."""
        own = {id(p) for site in self.sites for p in site.quantizer.parameters()}
        capture = self.graph.capture
        keep = self.graph.kept(dead)
        total = 0
        for name in capture.parameters:
            tensor = capture.tensors[name]
            if id(tensor) not in own:
                total += math.prod(len(keep[name, d]) if (name, d) in keep else s for d, s in enumerate(tensor.shape))
        return total


def macs(layers: Iterable[Layer], definition: str = "paper") -> float:
    """Sum of MACs per example under a definition, ``paper`` or ``all``."""
    return sum(layer.macs for layer in layers if layer.counted or definition == "all")


def bops(layers: Iterable[Layer], definition: str = "paper") -> float:
    """Sum of bit operations per example under a definition, ``paper`` or ``all``."""
    return sum(layer.bops for layer in layers if layer.counted or definition == "all")


def average_bits(layers: Sequence[Layer]) -> tuple[float, float]:
    """Weights' bits averaged over their elements; inputs' bits averaged over the layers."""
    counted = [layer for layer in layers if layer.counted]
    elements = sum(layer.weights for layer in counted)
    if not elements:
        return float(FLOAT_BITS), float(FLOAT_BITS)
    weight = sum(layer.weights * layer.weight_bits for layer in counted) / elements
    return weight, sum(layer.input_bits for layer in counted) / len(counted)
