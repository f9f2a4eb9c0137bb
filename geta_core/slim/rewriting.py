"""Numbers of an exported graph that stand for cut sizes, rewritten node by node."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.errors import PruningError
from geta_core.graph.capture import Capture, where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import varying
from geta_core.graph.rules import install_all
from geta_core.graph.rules.reductions import chosen_row
from geta_core.graph.rules.views import repeated_dims
from geta_core.graph.rules.windows import COUNTED, argument_of_sizes
from geta_core.graph.sizes import hint, shape_of
from geta_core.graph.streams import settle
from geta_core.slim.cut import Keep
from geta_core.slim.modes import REPLACED

aten = torch.ops.aten
LAST = torch.iinfo(torch.int64).max
"""End of a slice that leaves nothing out at the end, as torch.export writes it."""


def rewrite(module: fx.GraphModule, captured: Capture, keep: Keep, heads: str) -> None:
    """Rewrite the numbers of a dynamic graph that stand for cut sizes.

    The graph of ``module`` mirrors that of ``captured``, which carries shapes; nodes correspond by name, or by the name
    of the one that they replace. ``heads`` is the policy that chose ``keep``: only with it do the labels of what heads
    share (their scores) say what is gone.
    """
    install_all()
    first = Dependencies(captured, heads, True)
    first.run()
    settle(first)
    flags = torch.zeros(first.space.size, dtype=torch.bool)
    for (name, dim), index in keep.items():
        slot = first.space.slots.get((name, dim))
        if slot is not None:
            part = torch.ones(slot.size, dtype=torch.bool)
            part[index] = False
            flags[slot.offset : slot.offset + slot.size] = part
    removal = Removal(first, _followed(first, flags))
    twins = {node.meta.get(REPLACED, node.name): node for node in module.graph.nodes}
    for node in captured.graph.nodes:
        rewriter = _REWRITERS.get(getattr(node.target, "overloadpacket", None)) if node.op == "call_function" else None
        twin = twins.get(node.name)
        if rewriter is not None and twin is not None:
            rewriter(removal, node, twin)
    module.graph.lint()
    module.recompile()


def _followed(first: Dependencies, flags: Tensor) -> Tensor:
    """Also flag the indices of values that the code makes, where they are tied to indices that go."""
    if first.space.made:
        count, component = first.space.components()
        gone = torch.zeros(count, dtype=torch.bool)
        gone[component[flags]] = True
        for start, end in first.space.made:
            flags[start:end] = gone[component[start:end]]
    return flags


class Removal:
    """Which indices of each value's dimensions are gone."""

    def __init__(self, first: Dependencies, dead: Tensor) -> None:
        self.first, self.dead = first, dead

    def gone(self, node: fx.Node, dim: int, output: int | None = None) -> Tensor:
        """Bool [size]: removed indices of dimension ``dim`` of a value (of result number ``output``)."""
        value = self.first.values.get(node)  # none where no labelled value is read
        layers = () if not value else value if output is None else value[output]
        size = _shape(node, output)[dim]
        found = torch.zeros(size, dtype=torch.bool)
        for layer in cast(tuple[Tensor, ...], layers):
            if dim in varying(layer):
                flat = layer.movedim(dim, 0).reshape(layer.shape[dim], -1)
                found |= ((flat >= 0) & self.dead[flat.clamp(min=0)]).all(1)
        return found

    def size(self, node: fx.Node, dim: int, output: int | None = None) -> int:
        """Number of indices that stay."""
        return int((~self.gone(node, dim, output)).sum())

    def share(self, node: fx.Node) -> float:
        """The share of the channels that stay which a mean is taken over; 1 for what is no exact mean."""
        left = total = 1
        for dim in {dim for mean in self.first.means if mean.node is node for dim in varying(mean.layer)}:
            source = cast(fx.Node, node.args[0])
            left, total = left * self.size(source, dim), total * shape_of(source)[dim]
        return left / total

    def changed(self, node: fx.Node) -> bool:
        """Whether any dimension of a value gets smaller."""
        return any(bool(self.gone(node, dim).any()) for dim in range(len(shape_of(node))))


def _shape(node: fx.Node, output: int | None) -> tuple[int, ...]:
    value = node.meta["val"]
    value = value[output] if output is not None else value
    return tuple(hint(size) for size in value.shape)


def _sizes(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    twin.args = (twin.args[0], _new_sizes(removal, node, twin, 1), *twin.args[2:])


def _made_sizes(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """Sizes of a constant that the code makes."""
    place = argument_of_sizes(node)
    new = _new_sizes(removal, node, twin, place)
    twin.args = (*twin.args[:place], new, *twin.args[place + 1 :])


def _new_sizes(removal: Removal, node: fx.Node, twin: fx.Node, place: int) -> list[Any]:
    """The sizes in an argument, without what is gone; -1 and those that do not change stay as they are."""
    sizes, old = list(cast(list[Any], twin.args[place])), shape_of(node)
    for dim, size in enumerate(sizes):
        kept = removal.size(node, dim)
        if kept == old[dim] or size == -1:
            continue
        # A size computed from the batch, such as batch * heads, keeps the same share of itself.
        sizes[dim] = kept if isinstance(size, int) else _share(twin, size, kept, old[dim])
    return sizes


def _share(twin: fx.Node, size: fx.Node, kept: int, total: int) -> fx.Node:
    with twin.graph.inserting_before(twin):
        product = twin.graph.call_function(operator.mul, (size, kept))
        return twin.graph.call_function(operator.floordiv, (product, total))


def _counted(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """A row of numbers that the code makes: those of removed indices are left out."""
    gone = removal.gone(node, 0)
    if not bool(gone.any()):
        return
    with twin.graph.inserting_after(twin):
        chosen = twin.graph.call_function(aten.index_select.default, (twin, 0))
    chosen.meta = dict(twin.meta)
    twin.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)
    chosen.args = (twin, 0, _held_index(chosen, torch.nonzero(~gone).flatten()))


def _held_index(node: fx.Node, index: Tensor) -> fx.Node:
    """A buffer of positions, read before ``node``."""
    module = cast(fx.GraphModule, node.graph.owning_module)
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    path = f"_positions_{node.name}"
    module.register_buffer(path, index.to(device), persistent=False)
    with node.graph.inserting_before(node):
        return node.graph.get_attr(path)


def _repeat(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """As many copies of one index as stay."""
    for dim in repeated_dims(node):
        kept = removal.size(node, dim)
        if kept == shape_of(node)[dim]:
            continue
        counts = twin.args[1]
        new = [*counts[:dim], kept, *counts[dim + 1 :]] if isinstance(counts, (list, tuple)) else kept
        twin.args = (twin.args[0], new, *twin.args[2:])
        # The size of the result, where it is given, was that of all copies.
        twin.kwargs = {name: value for name, value in twin.kwargs.items() if name != "output_size"}


def _unflatten(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    dim = int(cast(int, node.args[1])) % len(shape_of(node.args[0]))
    sizes = cast(list[Any], twin.args[2])
    new = [removal.size(node, dim + i) if isinstance(s, int) and s != -1 else s for i, s in enumerate(sizes)]
    twin.args = (twin.args[0], dim, new)


def _normalized(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    count, rank = len(cast(list[int], node.args[1])), len(shape_of(node))
    shape = [removal.size(node, dim) for dim in range(rank - count, rank)]
    twin.args = (twin.args[0], shape, *twin.args[2:])
    share = removal.share(node)
    if share != 1:
        # x / sqrt(S / n + eps) = x / sqrt((S / n' + eps n / n') n' / n), for the n' of n channels that are left.
        eps = node.args[3] if len(node.args) > 3 else node.kwargs.get("eps")
        if eps is None:
            eps = torch.finfo(torch.promote_types(node.meta["val"].dtype, torch.float32)).eps
        weight = twin.args[2] if len(twin.args) > 2 else twin.kwargs.get("weight")
        twin.args, twin.kwargs = (*twin.args[:2], weight, cast(float, eps) / share), {}
        _scaled(twin, share**-0.5)


def _mean(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """What is gone was zero: the mean over what is left, times its share, is the mean over all."""
    share = removal.share(node)
    if share != 1:
        _scaled(twin, share)


def _scaled(twin: fx.Node, factor: float) -> None:
    with twin.graph.inserting_after(twin):
        product = twin.graph.call_function(aten.mul.Tensor, (twin, factor))
    product.meta = dict(twin.meta)
    twin.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)


def _group_norm(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    groups, channels = int(cast(int, node.args[1])), shape_of(node)[1]
    kept = removal.size(node, 1)
    twin.args = (twin.args[0], kept * groups // channels, *twin.args[2:])


def _conv(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    groups = int(cast(int, node.args[6])) if len(node.args) > 6 else int(cast(int, node.kwargs.get("groups", 1)))
    x, w = cast(fx.Node, node.args[0]), shape_of(node.args[1])
    channel = len(shape_of(x)) - (len(w) - 1)
    if groups > 1:
        # Groups of which nothing is left go; of the others, each lost as many channels.
        kept = int((~removal.gone(x, channel)).view(groups, -1).any(1).sum())
        if len(node.args) > 6:
            twin.args = (*twin.args[:6], kept, *twin.args[7:])
        else:
            twin.kwargs = {**twin.kwargs, "groups": kept}


def _pieces(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """split, split_with_sizes, chunk and tensor_split become split_with_sizes."""
    count, rank = len(node.meta["val"]), len(shape_of(node.args[0]))
    dim = int(cast(int, node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0))) % rank
    if not bool(removal.gone(cast(fx.Node, node.args[0]), dim).any()):
        return
    twin.target = aten.split_with_sizes.default
    twin.args = (twin.args[0], [removal.size(node, dim, i) for i in range(count)], dim)
    twin.kwargs = {}


def _slice(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    source = cast(fx.Node, node.args[0])
    rank = len(shape_of(source))
    dim = int(cast(int, node.args[1] if len(node.args) > 1 else 0)) % rank
    gone = removal.gone(source, dim)
    if not bool(gone.any()):
        return
    size, given = len(gone), [*node.args[2:], *[None] * 3]
    start, end = (_clamped(value, default, size) for value, default in zip(given[:2], (0, size), strict=True))
    if given[2] not in (None, 1):
        _pick(twin, dim, torch.arange(size)[start : end : int(cast(int, given[2]))], gone)
        return
    alive = (~gone).long().cumsum(0)
    new = [int(alive[bound - 1]) if bound else 0 for bound in (start, end)]
    if end == size:  # the size of a dimension that heads share with the batch is that of the example
        new[1] = LAST
    twin.args, twin.kwargs = (twin.args[0], dim, *new), {}


def _clamped(value: Any, default: int, size: int) -> int:
    if value is None:
        return default
    return max(0, min(int(value) + size if value < 0 else int(value), size))


def _narrow(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    source, dim, start, length = cast(tuple[fx.Node, int, int, int], node.args)
    gone = removal.gone(source, dim % len(shape_of(source)))
    if bool(gone.any()):
        start %= len(gone)
        kept = [int((~part).sum()) for part in (gone[:start], gone[start : start + length])]
        twin.args = (twin.args[0], dim, *kept)


def _roll(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """A roll over pruned channels: how far it goes depends on how many of those it moves are left."""
    source, shifts = cast(fx.Node, node.args[0]), cast(list[int], node.args[1])
    rank = len(shape_of(source))
    dims = [dim % rank for dim in cast(list[int], node.args[2] if len(node.args) > 2 else [])]
    if not dims and removal.changed(source):
        raise PruningError(f"a roll of all dimensions over pruned channels cannot be rewritten, at {where(node)}")
    new = []
    for shift, dim in zip(shifts, dims, strict=bool(dims)):
        gone = removal.gone(source, dim)
        new.append(int((~gone[len(gone) - shift % len(gone) :]).sum()) if bool(gone.any()) else shift)
    if dims:
        twin.args = (twin.args[0], new, dims)


def _unbind(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """The results are counted anew; what read a pruned one is gone with it."""
    source = cast(fx.Node, node.args[0])
    dim = int(cast(int, node.args[1] if len(node.args) > 1 else 0)) % len(shape_of(source))
    gone = removal.gone(source, dim)
    for user in list(twin.users):
        index = int(cast(int, user.args[1]))
        if not bool(gone[index]):
            user.args = (twin, int((~gone[:index]).sum()))
        elif user.users:
            raise PruningError(f"a selected channel was pruned, at {where(node)}")
        else:
            twin.graph.erase_node(user)


def _pick(twin: fx.Node, dim: int, positions: Tensor, gone: Tensor) -> None:
    """Turn a node into a choice of positions along one dimension, of those that stay."""
    alive = (~gone).long().cumsum(0) - 1
    index = _held_index(twin, alive[positions[~gone[positions]]])
    twin.target, twin.args, twin.kwargs = aten.index_select.default, (twin.args[0], dim, index), {}


def _select(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    source = cast(fx.Node, node.args[0])
    dim, index = int(cast(int, node.args[1])) % len(shape_of(source)), int(cast(int, node.args[2]))
    gone = removal.gone(source, dim)
    if bool(gone.any()):
        index %= len(gone)
        if bool(gone[index]):
            raise PruningError(f"a selected channel was pruned, at {where(node)}")
        twin.args = (twin.args[0], dim, int((~gone[:index]).sum()))


def _index(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """A choice by a constant index: the positions are counted anew."""
    chosen = chosen_row(removal.first.capture, node)
    if chosen is None:
        return
    dim, positions = chosen
    gone = removal.gone(cast(fx.Node, node.args[0]), dim)
    if bool(gone.any()):
        _pick(twin, dim, positions, gone)


def _attention(removal: Removal, node: fx.Node, twin: fx.Node) -> None:
    """The scale stays that of the original width of a head."""
    if node.kwargs.get("scale") is None and (len(node.args) < 7 or node.args[6] is None):
        twin.kwargs = {**twin.kwargs, "scale": shape_of(node.args[0])[-1] ** -0.5}


_REWRITERS: dict[Any, Callable[[Removal, fx.Node, fx.Node], None]] = {
    **dict.fromkeys([aten.view, aten.reshape, aten._unsafe_view, aten.expand, aten.broadcast_to], _sizes),
    **dict.fromkeys([aten.zeros, aten.ones, aten.full, aten.new_zeros, aten.new_ones, aten.new_full], _made_sizes),
    **dict.fromkeys(COUNTED, _counted),
    aten.index: _index,
    **dict.fromkeys([aten.repeat, aten.repeat_interleave], _repeat),
    aten.unflatten: _unflatten,
    **dict.fromkeys([aten.layer_norm, aten.rms_norm], _normalized),
    aten.mean: _mean,
    aten.group_norm: _group_norm,
    **dict.fromkeys([aten.conv1d, aten.conv2d, aten.conv3d], _conv),
    **dict.fromkeys([aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d], _conv),
    **dict.fromkeys([aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split], _pieces),
    aten.slice: _slice,
    aten.narrow: _narrow,
    aten.roll: _roll,
    aten.select: _select,
    aten.unbind: _unbind,
    aten.scaled_dot_product_attention: _attention,
}
