"""Sizes of values in a captured graph, symbolic ones as in the example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from geta_core.errors import GetaError


def hint(size: Any) -> int:
    """The example's value of a size that may be symbolic.

    Raises:
        GetaError: for a size that has none, because it is computed from the values of a tensor.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is None:
        raise GetaError(
            f"a size in the graph ({size}) is computed from the values of a tensor, so that it has no fixed number of "
            "indices; a forward must take sizes from shapes (experts: compute with all of them and weight the results)"
        )
    return int(size.node.hint)


def shape_of(node: Any) -> tuple[int, ...]:
    """Shape of a node's value; () for Python numbers. Symbolic sizes take the example's value."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(hint(size) for size in value.shape) if isinstance(value, Tensor) else ()


def literal(value: Any) -> Any:
    """Arguments with every symbolic size replaced by the example's value."""

    def number(node: fx.Node) -> Any:
        size = node.meta.get("val")
        return hint(size) if isinstance(size, (int, torch.SymInt)) else node

    return fx.node.map_arg(value, number)
