"""Where an element-wise operation keeps zeros, found by evaluating the operation itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from geta_core.graph.zeros import Zeros

PROBES = 257
"""Number of random values at which an operation is evaluated; odd, so that it broadcasts against nothing else."""


def tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """The tensors among the arguments of a call."""
    values = [*node.args, *node.kwargs.values()]
    return [v for v in values if isinstance(v, fx.Node) and isinstance(v.meta.get("val"), Tensor)]


def random_values(values: Sequence[fx.Node]) -> list[Tensor]:
    """[PROBES] values of both signs and many scales (or both truth values) in the place of each node's."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-3, 3, PROBES, dtype=torch.float64)
    found = []
    for value in values:
        noise = torch.randn(PROBES, generator=generator, dtype=torch.float64)
        dtype = value.meta["val"].dtype
        mixed = noise * scale[torch.randperm(PROBES, generator=generator)]
        found.append(noise > 0 if dtype == torch.bool else mixed.to(dtype))
    return found


def evaluate(node: fx.Node, arguments: Sequence[fx.Node], values: Sequence[Tensor]) -> Tensor:
    """The node's own operation on other values of its arguments, given in their order."""
    queue = iter(values)

    def swap(value: Any) -> Any:
        return next(queue).clone() if isinstance(value, fx.Node) and value in arguments else value

    args = [swap(a) for a in node.args]
    kwargs = {key: swap(v) for key, v in node.kwargs.items()}
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def constant(ctx: Zeros, node: fx.Node) -> Tensor | None:
    """The number behind a value that comes from single numbers in buffers and constants alone, else None.

    Such a number (a zero point, the end of a grid) is a setting; ``finish`` proves the result with its last value.
    """
    if node not in ctx.numbers:
        ctx.numbers[node] = _computed(ctx, node)
    return ctx.numbers[node]


def _computed(ctx: Zeros, node: fx.Node) -> Tensor | None:
    shown = node.meta.get("val")
    if not isinstance(shown, Tensor) or shown.numel() != 1 or node in ctx.capture.data:
        return None
    if node.op == "placeholder":
        name = ctx.capture.names.get(node)
        held = None if name is None or name in ctx.capture.parameters else ctx.capture.tensors[name]
        return held.detach().cpu() if held is not None else None
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        return None
    known = {source: constant(ctx, source) for source in node.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None


def zeroing_subsets(node: fx.Node, constants: Sequence[Tensor | None] = ()) -> list[tuple[int, ...]]:
    """Smallest sets of tensor arguments whose being zero makes the result exactly zero, found by evaluation.

    The other arguments take random values, or the number that ``constants`` gives.
    """
    arguments = tensor_arguments(node)
    probes = _probes(arguments, constants)
    found: list[tuple[int, ...]] = []
    for count in range(1, len(arguments) + 1):
        for subset in itertools.combinations(range(len(arguments)), count):
            if any(set(smaller) <= set(subset) for smaller in found):
                continue
            values = [torch.zeros_like(p) if i in subset else p for i, p in enumerate(probes)]
            if bool((evaluate(node, arguments, values) == 0).all()):
                found.append(subset)
    return found


def unbounded_at_zero(node: fx.Node, constants: Sequence[Tensor | None] = ()) -> list[int]:
    """The tensor arguments at whose zero the result is not finite, where it is at another value."""
    arguments = tensor_arguments(node)
    probes = _probes(arguments, constants)
    finite = evaluate(node, arguments, probes).isfinite()
    found = []
    for index in range(len(probes)):
        values = [torch.zeros_like(p) if i == index else p for i, p in enumerate(probes)]
        if bool((finite & ~evaluate(node, arguments, values).isfinite()).any()):
            found.append(index)
    return found


def _probes(arguments: Sequence[fx.Node], constants: Sequence[Tensor | None]) -> list[Tensor]:
    """Random values, or the number that is known, in the place of each argument."""
    probes = random_values(arguments)
    for i, number in enumerate(constants):
        if number is not None:
            probes[i] = number.reshape(1).expand(PROBES)
    return probes
