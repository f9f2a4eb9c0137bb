"""Operations that are a short formula of others: gated linear units, weight normalization, fresh tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, Operand, tidy
from geta_core.graph.rules.base import Rule, add, add_factories
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import Zeros

aten = torch.ops.aten


def _gated_dim(node: fx.Node) -> int:
    value: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
    return int(value) % len(shape_of(node.args[0]))


def _halves(layers: Layers, dim: int) -> tuple[Layers, Layers]:
    """The layers of both halves along a dimension; a layer that is the same along it belongs to both."""
    parts = [layer.chunk(2, dim) if layer.shape[dim] > 1 else (layer, layer) for layer in layers]
    return tidy(first for first, _ in parts), tidy(second for _, second in parts)


def _glu_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """Half a times the sigmoid of half b: what faces each other goes together."""
    letters = tuple(range(len(shape_of(node))))
    data = node.args[0] in ctx.capture.data
    halves = _halves(ctx.layers(node.args[0]), _gated_dim(node))
    return ctx.combine(node, [Operand(layers, letters, shape_of(node), data) for layers in halves], letters)


def _glu_zeros(ctx: Zeros, node: fx.Node) -> Layers:
    """Zero where the first half is: the gate is never infinite."""
    return _halves(ctx.zeros(node.args[0]), _gated_dim(node))[0]


def _weight_norm_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """The weight is g v / ||v||: a direction of zero gives 0 / 0, and a length changes with what it is taken over."""
    for value in node.args[:2]:
        for layer in ctx.layers(value):
            ctx.pin(node, layer, "enters a weight normalization, which divides by its length")
    return ctx.layers(node.args[0])


def _nothing(ctx: Zeros, node: fx.Node) -> Layers:
    return ()


def _fresh_labels(ctx: Dependencies, node: fx.Node) -> Layers:
    """Values that are about to be written: nothing of what they are like is in them."""
    return ()


def install() -> None:
    """Enter the rules of this file."""
    add([aten.glu], Rule(_glu_labels, _glu_zeros))
    add([aten._weight_norm], Rule(_weight_norm_labels, _nothing))
    add_factories([aten.new_empty], Rule(_fresh_labels, _nothing))
