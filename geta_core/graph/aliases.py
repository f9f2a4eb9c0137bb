"""Views of values, read from the graph."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

aten = torch.ops.aten


def parts_of(view: fx.Node, root: fx.Node) -> list[tuple[int, bool]]:
    """How a view shows a part of its root: each dimension that it takes a part of, and whether it lacks it.

    Empty where it is something else. An index is taken last, so that the dimensions are those of the root.
    """
    found, node = list[tuple[int, bool]](), view
    while node.op == "call_function" and getattr(node.target, "overloadpacket", None) in (aten.select, aten.slice):
        packet = node.target.overloadpacket  # type: ignore[union-attr]
        source = cast(fx.Node, node.args[0])
        if found and packet is aten.select:
            return []
        dim = cast(int, node.args[1]) if len(node.args) > 1 else 0
        found.append((dim % source.meta["val"].dim(), packet is aten.select))
        node = source
    return found if node is root else []
