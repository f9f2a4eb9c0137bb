"""Small networks with random parameters, and the proofs that the tests of graph and slimming share.

Nothing here trusts the engine: outputs are recomputed, and members of a group are moved by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.graph import Member
from geta_core.prepared import Prepared

Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Modules, parameters and buffers by name, and a function of them and of one input."""

    def __init__(self, body: Body, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def image_net(body: Body, width: int = 6, out: int | None = None, **parts: nn.Module | Tensor) -> Net:
    """Convolution 3 -> width, then ``body`` on [N, width, 8, 8], then one from ``out`` channels and a head."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = torch.tanh(net.last(body(net, net.stem(x))))
        return net.head(y.mean((2, 3)))

    stem, last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(out or width, 4, 1)
    return Net(forward, stem=stem, last=last, head=nn.Linear(4, 5), **parts)


def token_net(body: Body, width: int = 6, out: int | None = None, **parts: nn.Module | Tensor) -> Net:
    """Linear 8 -> width, then ``body`` on [N, 7, width], then a linear layer from ``out`` features."""
    stem, head = nn.Linear(8, width), nn.Linear(out or width, 5)
    return Net(lambda net, x: net.head(body(net, net.stem(x))), stem=stem, head=head, **parts)


def image(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, 7, 8)


def randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic a random value that is not zero; signals keep their size."""
    generator = torch.Generator().manual_seed(seed)

    def random(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() > 1:
                tensor.copy_(random(tensor.shape) * (2 / tensor[0].numel()) ** 0.5)
            else:
                tensor.add_(random(tensor.shape) * 0.3)
        for tensor in model.buffers():
            if tensor.is_floating_point():  # means start at 0 and variances, which must stay positive, at 1
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5)
    return model


def double(inputs: Any) -> Any:
    return torch.utils._pytree.tree_map_only(
        Tensor, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, inputs
    )


def prepared64(model: nn.Module, inputs: Any, **config: Any) -> Prepared:
    """Prepare in float64 with random parameters; without quantizers unless ``config`` asks for them."""
    settings = geta.CompressionConfig(**{"weight_bits": None, **config})
    return geta.prepare(randomise_(model.double()), double(inputs), settings)


def rows(inputs: Any, count: int) -> Any:
    """Repeat or drop examples."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t[torch.arange(count) % len(t)], inputs)


def fresh(inputs: Any, seed: int = 5) -> Any:
    """Other inputs of the same kind: the elements of each tensor in another order, numbers with noise added."""
    generator = torch.Generator().manual_seed(seed)

    def change(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        mixed = tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)
        return mixed + torch.randn(mixed.shape, generator=generator) if mixed.is_floating_point() else mixed

    return torch.utils._pytree.tree_map_only(Tensor, change, inputs)


def run(model: nn.Module, inputs: Any, train: bool = False) -> list[Tensor]:
    """Every output of a copy of the model, in the given mode; the model's buffers stay as they are."""
    model = copy.deepcopy(model).train(train)
    with torch.no_grad():
        if isinstance(inputs, dict):
            result = model(**inputs)
        else:
            result = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def gap(left: Iterable[Tensor], right: Iterable[Tensor]) -> float:
    """Largest difference, relative to the largest element (at least 1)."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, float(a.abs().max()))
        worst = max(worst, float((a - b).abs().max()) / scale)
    assert worst == worst, "an output is not a number"
    return worst


def prunable(prepared: Prepared, name: str, dim: int = 0) -> list[geta.Group]:
    """Groups that may be removed and hold an index of this tensor dimension."""
    return [group for group in prepared.graph.groups if group.pinned is None and holds(group, name, dim)]


def pinned(prepared: Prepared, name: str, dim: int = 0) -> list[geta.Group]:
    return [group for group in prepared.graph.groups if group.pinned is not None and holds(group, name, dim)]


def holds(group: geta.Group, name: str, dim: int = 0) -> bool:
    return any(member.name == name and member.dim == dim for member in group.members)


def choose(prepared: Prepared, seed: int, share: float = 0.5) -> list[int]:
    """A random share of each family, at least one group where the family has two, never all."""
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for family in range(int(prepared.family.max()) + 1 if prepared.num_prunable else 0):
        members = torch.nonzero(prepared.family == family).flatten()
        order = members[torch.randperm(len(members), generator=generator)]
        chosen += order[: min(max(1, int(share * len(members))), len(members) - 1)].tolist()
    return chosen


def change_(model: nn.Module, members: Iterable[Member], value: float | None) -> None:
    """Set the members' indices to a value, or (None) to large random ones."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for member in members:
            tensor = tensors.get(member.name)
            if tensor is None:  # a constant of the traced code, which nothing can change
                continue
            part = tensor.index_select(member.dim, torch.tensor(member.indices))
            new = torch.full_like(part, value) if value is not None else 3 + torch.rand_like(part)
            tensor.index_copy_(member.dim, torch.tensor(member.indices), new)


def effect_of_reading(prepared: Prepared, group: geta.Group, inputs: Any) -> float:
    """How much the output moves with what reads a group (columns, running statistics) while the group is zero.

    This is the definition of a removable group, computed without the engine's analysis: 0 for each that may go.
    """
    model = copy.deepcopy(prepared.model)
    change_(model, [m for m in group.members if m.role == "PRODUCE"], 0.0)
    before = run(model, inputs)
    change_(model, [m for m in group.members if m.role != "PRODUCE"], None)
    return gap(before, run(model, inputs))


def assert_sound(prepared: Prepared, inputs: Any, seed: int = 0) -> geta.Compressed | None:
    """Prove groups by brute force: first one of each family alone, then half of all of them removed for good."""
    inputs = double(inputs)
    for family in range(int(prepared.family.max()) + 1 if prepared.num_prunable else 0):
        first = int(torch.nonzero(prepared.family == family)[0])
        assert effect_of_reading(prepared, prepared.graph.groups[first], inputs) <= 1e-12
    chosen = choose(prepared, seed)
    if not chosen:
        return None
    dense = run(prepared.model, inputs)
    prepared.zero_(chosen)
    assert prepared.zero_groups() == len(chosen)
    assert gap(dense, run(prepared.model, inputs)) > 1e-6, "zeroing changes nothing, so the net proves nothing"
    compressed = geta.finish(prepared)
    assert compressed.report.removed == len(chosen)
    assert_equal(prepared.model, compressed.model, inputs)
    return compressed


def assert_equal(zeroed: nn.Module, slim: nn.Module, inputs: Any, *, train: bool = True, most: float = 1e-10) -> None:
    """Same outputs for two batches, of which one is new, in eval mode and (without randomness) in train mode."""
    for count in (2, 5):
        batch = inputs if count == 2 else fresh(rows(inputs, count))
        for mode in (False, True) if train else (False,):
            assert gap(run(zeroed, batch, mode), run(slim, batch, mode)) <= most, f"{count} rows, train={mode}"
    small = {name: tensor.shape for name, tensor in slim.named_parameters()}
    dense = {name: tensor.shape for name, tensor in zeroed.named_parameters()}
    assert small.keys() == dense.keys()
    assert small != dense
