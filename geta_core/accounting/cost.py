"""The one accountant: multiply-accumulates, bit operations and bytes, counted from the captured graph.

Definitions (arXiv:2502.16638, metric BOPs): ``paper`` counts the products of convolutions and linear layers with their
weights, each MAC weighing weight bits times input bits, over the dense float model's MACs x 32 x 32; ``all`` adds the
products of two activations (attention). Counts are per example.

Zeros inside what is kept (unstructured sparsity) do not lower either count: dense hardware multiplies by them. Papers
on unstructured pruning count only nonzero weights; definition ``sparse`` does that, BOPs of ``paper`` times the share
of nonzero weights of each layer, and is always reported beside ``paper``, never instead of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from geta_core.accounting.products import Product, products
from geta_core.graph.groups import GroupGraph
from geta_core.graph.sizes import shape_of
from geta_core.quantize import QuantSite
from geta_core.quantize.packing import packed_bytes
from geta_core.slim.rewriting import Removal

FLOAT_BITS = 32


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
    density: float = 1.0
    """Share of the weight's elements that are not zero."""

    @property
    def bops(self) -> float:
        """Bit operations per example."""
        return self.macs * self.weight_bits * self.input_bits


@dataclass(frozen=True)
class Packed:
    """A weight that is stored as whole numbers."""

    site: str
    elements: int
    axis: int | None
    """Dimension along which its step varies."""
    index: Tensor | None
    """Channels that stay, None where all do."""
    step_size: int
    """Bytes of one step."""

    def bytes(self, bits: Tensor) -> int:
        """Bytes of the levels and their steps.

        Args:
            bits: shaped like the step of the dense model.
        """
        if self.axis is not None and self.index is not None:
            bits = bits.index_select(self.axis, self.index.to(bits.device))
        return packed_bytes(self.elements, bits.round()) + bits.numel() * self.step_size


@dataclass(frozen=True)
class Storage:
    """Sizes of the tensors of an artifact."""

    rest: int
    """Bytes of the tensors that are stored as they are."""
    packed: tuple[Packed, ...]

    def bytes(self, bits: Mapping[str, Tensor]) -> int:
        """Bytes of all tensors at these bit widths, by the name of the site."""
        return self.rest + sum(weight.bytes(bits[weight.site]) for weight in self.packed)


class Account:
    """Counts of a captured model under any set of removed groups and any bit widths."""

    def __init__(self, graph: GroupGraph, sites: Sequence[QuantSite], batch: int) -> None:
        self.graph, self.sites, self.batch = graph, sites, batch
        self.products = products(graph.capture, sites)

    def layers(
        self, dead: Tensor, bits: Mapping[str, float], density: Mapping[str, float] | None = None
    ) -> list[Layer]:
        """One row per multiplication.

        Args:
            dead: bool [num_prunable], the removed groups.
            bits: bit width of each site by its name.
            density: share of nonzero elements by the name of a weight; 1 where it has no entry.
        """
        removal = Removal(self.graph.first, self.graph.dead_ids(dead))
        return [self._layer(product, removal, bits, density or {}) for product in self.products]

    def _layer(
        self, product: Product, removal: Removal, bits: Mapping[str, float], density: Mapping[str, float]
    ) -> Layer:
        total = math.prod(removal.size(node, dim % len(shape_of(node))) for node, dim in product.sizes)
        counted, weights = product.operand is not None, 0
        if product.operand is not None:
            weights = math.prod(removal.size(product.operand, dim) for dim in range(len(shape_of(product.operand))))
        weight_bits = bits[product.weight_site.name] if product.weight_site else FLOAT_BITS
        input_bits = bits[product.input_site.name] if product.input_site else FLOAT_BITS
        share = density.get(product.name, 1.0) if counted else 1.0
        return Layer(product.name, product.op, total / self.batch, weight_bits, input_bits, weights, counted, share)

    def parameters(self, dead: Tensor) -> int:
        """Elements of all parameters that stay (quantizers' own excluded)."""
        own = {id(p) for site in self.sites for p in site.quantizer.parameters()}
        capture, keep = self.graph.capture, self.graph.kept(dead)
        held = {name: capture.tensors[name] for name in capture.parameters}
        return sum(_kept_elements(name, tensor, keep) for name, tensor in held.items() if id(tensor) not in own)

    def stored_bytes(self, dead: Tensor, bits: Mapping[str, Tensor]) -> int:
        """Bytes of the tensors that an artifact holds: integer weights with their steps, the rest as it is.

        Args:
            dead: bool [num_prunable], the removed groups.
            bits: bit width of each weight site by its name, shaped like its step; rounded to whole numbers here.
        """
        return self.storage(dead).bytes(bits)

    def storage(self, dead: Tensor) -> Storage:
        """What the tensors that stay take, for any bit widths."""
        weights = {id(site.parameter): site for site in self.sites if site.kind == "weight"}
        own = {id(p) for site in weights.values() for p in site.quantizer.parameters()}
        capture, keep = self.graph.capture, self.graph.kept(dead)
        rest, packed = 0, list[Packed]()
        for name in capture.tensors.keys() - self._idle():
            tensor = capture.tensors[name]
            if id(tensor) in own:
                continue
            site = weights.get(id(tensor))
            elements = _kept_elements(name, tensor, keep)
            if site is None:
                rest += elements * tensor.element_size()
            else:
                axis = site.quantizer.channel_axis
                index = None if axis is None else keep.get((name, axis))
                packed.append(Packed(site.name, elements, axis, index, site.quantizer.d.element_size()))
        return Storage(rest, tuple(packed))

    def dense_bytes(self) -> int:
        """Bytes of the tensors of the model as it came: nothing removed, nothing quantized."""
        own = {id(p) for site in self.sites for p in site.quantizer.parameters()}
        capture, idle = self.graph.capture, self._idle()
        held = (t for name, t in capture.tensors.items() if name not in idle and id(t) not in own)
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def _idle(self) -> set[str]:
        """Names of unused tensors that are neither parameters nor buffers; unlike those they are not stored."""
        capture = self.graph.capture
        constants = set(capture.program.graph_signature.inputs_to_lifted_tensor_constants.values())
        return {name for node, name in capture.names.items() if not node.users} & constants


def _kept_elements(name: str, tensor: Tensor, keep: Mapping[tuple[str, int], Tensor]) -> int:
    return math.prod(len(keep[name, d]) if (name, d) in keep else size for d, size in enumerate(tensor.shape))


def macs(layers: Iterable[Layer], definition: str = "paper") -> float:
    """Sum of MACs per example under a definition, ``paper`` or ``all``."""
    return sum(layer.macs for layer in layers if layer.counted or definition == "all")


def bops(layers: Iterable[Layer], definition: str = "paper") -> float:
    """Sum of bit operations per example under a definition, ``paper``, ``all`` or ``sparse``."""
    if definition == "sparse":
        return sum(layer.bops * layer.density for layer in layers if layer.counted)
    return sum(layer.bops for layer in layers if layer.counted or definition == "all")


def average_bits(layers: Sequence[Layer]) -> tuple[float, float]:
    """Weights' bits averaged over their elements; inputs' bits averaged over the layers."""
    counted = [layer for layer in layers if layer.counted]
    elements = sum(layer.weights for layer in counted)
    if not elements:
        return float(FLOAT_BITS), float(FLOAT_BITS)
    weight = sum(layer.weights * layer.weight_bits for layer in counted) / elements
    return weight, sum(layer.input_bits for layer in counted) / len(counted)
