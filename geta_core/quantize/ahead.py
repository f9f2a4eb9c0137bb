"""Quantize a model's small weights together, when its forward pass begins.

Quantizing a small weight takes longer to call than to compute. Called in its layer's turn, between convolutions that
have driven the interpreter's data out of the caches, it takes more than twice as long as in a loop of nothing else, and
the backward pass pays the same again for a node of its own per weight. So the root's forward pre-hook quantizes all of
them in one loop, as one node of the graph, and each layer finds its x^Q there. Values are the same bits, and so are
gradients, but for a weight that is used several times: its gradients are added up before the formulas and not after.

An x^Q is used only in the call it was made for: while the root runs, and in a backward pass, where checkpointing runs
layers again. A layer that is called by itself, whose weight or grid was changed or exchanged in the meantime, or that
torch.compile or torch.export traces, quantizes its weight in its turn as if this module were not there. Weights on
other devices are not taken, nor large ones (a gradient that is known early can be reduced early).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.hooks import RemovableHandle

from geta_core.quantize import kernels
from geta_core.quantize.versions import CHANGED, versions

if TYPE_CHECKING:
    from geta_core.quantize.quantizer import Quantizer

Parts = tuple[Tensor, Tensor, Tensor, Tensor | None]


class _Call:
    """One call of the root, and whether it is still under way."""

    running = True


class Made:
    """The x^Q of one weight in one call of the root.

    Args:
        call: the root's call.
        parts: x, d, q_m and t that it was made from.
        out: x^Q.
    """

    __slots__ = ("call", "out", "parts", "versions")

    def __init__(self, call: _Call, parts: Parts, out: Tensor) -> None:
        self.call, self.parts, self.out = call, parts, out
        self.versions = versions((*parts, out))

    def serves(self, parts: Parts) -> bool:
        """Tell whether ``out`` may stand for x^Q of these, with the graph that is wanted now."""
        if not self.call.running and torch._C._current_graph_task_id() < 0:
            return False
        if any(a is not b for a, b in zip(parts, self.parts, strict=True)):
            return False
        if versions((*parts, self.out)) != self.versions:
            return False
        return self.out.requires_grad or not (torch.is_grad_enabled() and _wants_graph(parts))


class Ready(threading.local):
    """Where a quantizer finds what was made for it, one per thread. A copy begins empty: graphs cannot be copied."""

    def __init__(self) -> None:
        self.made: Made | None = None

    def __reduce__(self) -> tuple[type[Ready], tuple[()]]:
        """Copy and pickle as an empty one."""
        return Ready, ()


def _wants_graph(parts: Iterable[Tensor | None]) -> bool:
    return any(part is not None and part.requires_grad for part in parts)


class _Together(torch.autograd.Function):
    """x^Q of many weights: ``apply(signed, exponents, *tensors)``; exponents tells which weights come with a t.

    The parameters live anyway, so that keeping them costs nothing and nothing needs to be freed: parts of the graph may
    run backward one after the other, as the nodes of single weights could.
    """

    @staticmethod
    def forward(ctx: Any, signed: Sequence[bool], exponents: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.signed, ctx.parts = signed, _grouped(exponents, tensors)
        ctx.versions = [versions(parts) for parts in ctx.parts]
        ctx.set_materialize_grads(False)
        return tuple(
            kernels.forward(x, d, q_m, t, sign) for (x, d, q_m, t), sign in zip(ctx.parts, signed, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = [None, None]
        for g, parts, sign, before in zip(grads, ctx.parts, ctx.signed, ctx.versions, strict=True):
            given = sum(part is not None for part in parts)
            if g is None:
                result += [None] * given
                continue
            if versions(parts) != before:
                raise RuntimeError(CHANGED)
            x, d, q_m, t = parts
            result += kernels.backward(g, x, d, q_m, t, sign)[:given]
        return tuple(result)


def _grouped(exponents: Iterable[bool], tensors: Iterable[Tensor]) -> list[Parts]:
    rest = iter(tensors)
    return [(next(rest), next(rest), next(rest), next(rest) if given else None) for given in exponents]


_together: Callable[..., tuple[Tensor, ...]] = _Together.apply


class Ahead:
    """The root's forward hooks, as bound methods, so that copies of the model have copies of their own.

    Attributes:
        weights: the parametrizations of every weight, and the quantizer that is the first of them.
        handles: of the hooks.
    """

    def __init__(self, model: nn.Module, weights: Iterable[tuple[ParametrizationList, Quantizer]]) -> None:
        self.weights = list(weights)
        self.handles: tuple[RemovableHandle, ...] = (
            model.register_forward_pre_hook(self.begin),
            model.register_forward_hook(self.end, always_call=True),
        )

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Quantize every weight that is small, on the CPU, and not being calibrated."""
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return
        taken = [(quantizer, owner.original) for owner, quantizer in self.weights if _is_taken(owner, quantizer)]
        if not taken:
            return
        parts = [quantizer.parts(x) for quantizer, x in taken]
        signed = [quantizer.signed for quantizer, _ in taken]
        given = [part for group in parts for part in group if part is not None]
        outs = _together(signed, [group[-1] is not None for group in parts], *given)
        call = _Call()
        for (quantizer, _), group, out in zip(taken, parts, outs, strict=True):
            quantizer.ready.made = Made(call, group, out)

    def end(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Let what was made serve backward passes alone, or nothing where there will be none."""
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return
        for _, quantizer in self.weights:
            made = quantizer.ready.made
            if made is not None:
                made.call.running = False
                quantizer.ready.made = made if made.out.requires_grad else None

    def forget_(self, quantizer: Quantizer) -> None:
        """Leave a weight to its layer; with the last one the hooks are removed."""
        self.weights = [pair for pair in self.weights if pair[1] is not quantizer]
        quantizer.ready.made = None
        if not self.weights:
            for handle in self.handles:
                handle.remove()


def _is_taken(owner: ParametrizationList, quantizer: Quantizer) -> bool:
    # Whoever puts another parametrization before the quantizer (a gate) gives it something else to quantize.
    if len(owner) == 0 or owner[0] is not quantizer:
        return False
    return quantizer.observer is None and not quantizer.chain_rule and kernels.is_small(owner.original)
