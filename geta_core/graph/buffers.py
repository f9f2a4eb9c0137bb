"""Values that are written piece by piece into a fresh buffer, read as the concatenation that they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten

FRESH = (aten.empty, aten.new_empty, aten.empty_like, aten.zeros, aten.new_zeros, aten.zeros_like)


class _Piece(NamedTuple):
    start: int
    end: int
    dim: int
    part: fx.Node
    write: fx.Node
    source: fx.Node


def join_writes(graph: fx.Graph) -> None:
    """Replace buffers whose slices along one dimension are all written, each once, before anything reads them."""
    for node in list(graph.nodes):
        if getattr(node.target, "overloadpacket", None) in FRESH:
            pieces = _pieces(node)
            if pieces:
                _join(node, pieces)


def _pieces(buffer: fx.Node) -> list[_Piece]:
    """The writes that fill a buffer, in the order of its indices; none if it is used in any other way before."""
    parts = [user for user in buffer.users if getattr(user.target, "overloadpacket", None) is aten.slice]
    found = [piece for part in parts if (piece := _piece(buffer, part)) is not None]
    if len(found) < 2 or len({piece.dim for piece in found}) > 1:
        return []
    found.sort(key=lambda piece: piece.start)
    bounds = [0, *(piece.end for piece in found)]
    size = buffer.meta["val"].shape[found[0].dim]
    if [piece.start for piece in found] != bounds[:-1] or not isinstance(size, int) or bounds[-1] != size:
        return []
    last, written = max(piece.write for piece in found), {piece.part for piece in found}
    others = [user for user in buffer.users if user not in written]
    return found if all(user > last and not _writes(user, buffer) for user in others) else []


def _piece(buffer: fx.Node, part: fx.Node) -> _Piece | None:
    """A slice that is only written, by a value of its own shape and type."""
    size = buffer.meta["val"].shape
    given: list[Any] = [*part.args[1:], *(0, None, None, 1)[len(part.args) - 1 :]]
    dim, (start, end, step), users = given[0] % len(size), given[1:], list(part.users)
    plain = isinstance(size[dim], int) and all(isinstance(bound, (int, type(None))) for bound in (start, end))
    if not plain or step != 1 or len(users) != 1 or users[0].users or users[0].target is not aten.copy_.default:
        return None
    (write,), source = users, users[0].args[1]
    if write.args[0] is not part or not isinstance(source, fx.Node) or not _alike(part, source):
        return None
    first, after, _ = slice(start, end).indices(size[dim])
    return _Piece(first, after, dim, part, write, source)


def _alike(part: fx.Node, source: fx.Node) -> bool:
    left, right = part.meta.get("val"), source.meta.get("val")
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.dtype != right.dtype:
        return False
    # Sizes may be symbols, which are compared by their names: an equation of symbols would become a condition.
    return left.device == right.device and list(map(str, left.shape)) == list(map(str, right.shape))


def _writes(user: fx.Node, buffer: fx.Node) -> bool:
    schema = getattr(user.target, "_schema", None)
    return schema is None or (schema.is_mutable and user.args[0] is buffer)


def _join(buffer: fx.Node, pieces: list[_Piece]) -> None:
    with buffer.graph.inserting_after(max(piece.write for piece in pieces)):
        whole = buffer.graph.call_function(aten.cat.default, ([piece.source for piece in pieces], pieces[0].dim))
    whole.meta = dict(buffer.meta)
    written = {piece.part for piece in pieces}
    buffer.replace_all_uses_with(whole, delete_user_cb=lambda user: user not in written)
    for piece in pieces:
        buffer.graph.erase_node(piece.write)
        buffer.graph.erase_node(piece.part)
    buffer.graph.erase_node(buffer)
