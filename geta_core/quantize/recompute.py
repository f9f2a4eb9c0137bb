"""Keep the recipe of a quantized tensor for the backward pass instead of the tensor itself.

A layer such as a convolution saves its input and its weight for its backward pass. Where these are quantized values,
the float originals are kept anyway (the quantizer's own backward needs them), so that x^Q can be computed again from
them: the same bits, hence identical gradients, for one more evaluation of the quantizer.

While a layer runs, a frame lists the quantized tensors that were made for it; a saved tensor that lives in the storage
of one of them, or views it, is replaced by its recipe. Under torch.compile and torch.export nothing is done: there the
compiler decides what is recomputed. Tensors that autocast copies to a lower precision are new ones and are kept.
Where several torch.autograd.graph.saved_tensors_hooks are nested, torch runs the innermost pair alone; outer ones
(save_on_cpu, non-reentrant checkpointing) therefore do not see what such a layer saves.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geta_core.quantize import kernels
from geta_core.quantize.versions import CHANGED, versions


@dataclass(frozen=True, eq=False)
class Recipe:
    """What x^Q is made from, with the versions that tell whether something was changed in place."""

    x: Tensor
    d: Tensor
    q_m: Tensor
    t: Tensor | None
    signed: bool
    versions: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Recipe:
        """Return the recipe for the present values."""
        parts = (x.detach(), d.detach(), q_m.detach(), None if t is None else t.detach())
        return cls(*parts, signed, versions(parts))

    def cook(self) -> Tensor:
        """Return x^Q.

        Raises:
            RuntimeError: an ingredient was changed in place since the forward pass.
        """
        parts = (self.x, self.d, self.q_m, self.t)
        if versions(parts) != self.versions:
            raise RuntimeError(CHANGED)
        with torch.no_grad():
            return kernels.forward(*parts, self.signed)


@dataclass(frozen=True, eq=False)
class _Cooked:
    """A view of x^Q, as its recipe and its place in the storage."""

    recipe: Recipe
    size: Sequence[int]
    stride: Sequence[int]
    offset: int | torch.SymInt

    def unpack(self) -> Tensor:
        return self.recipe.cook().as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Any other tensor. Autograd does not check for in-place changes where there are hooks, so this does."""

    tensor: Tensor
    version: int

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(CHANGED)
        return self.tensor


@dataclass(eq=False)
class _Frame:
    """The quantized tensors of one layer call, by the address of their storage; holding them keeps addresses unique."""

    module: nn.Module
    hooks: Any = None
    made: dict[int, tuple[Tensor, Recipe]] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> _Cooked | _Kept:
        found = self.made.get(tensor.untyped_storage().data_ptr()) if self.made else None
        if found is None or found[0].dtype != tensor.dtype:
            return _Kept(tensor, tensor._version)
        return _Cooked(found[1], tensor.size(), tensor.stride(), tensor.storage_offset())


def _unpack(saved: _Cooked | _Kept) -> Tensor:
    return saved.unpack()


class _Frames(threading.local):
    """The calls under way in this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Frame] = []


_frames = _Frames()


def note(made: Tensor, recipe: Recipe) -> None:
    """Tell the innermost running layer that ``made`` can be had again from ``recipe``."""
    if _frames.stack and made.numel() > 0:
        _frames.stack[-1].made[made.untyped_storage().data_ptr()] = (made, recipe)


class EnterFrame:
    """Forward pre-hook that starts a frame; it holds no state, so that it may be copied with its module."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Start a frame for this call of the module."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        frame = _Frame(module)
        frame.hooks = torch.autograd.graph.saved_tensors_hooks(frame.pack, _unpack)
        frame.hooks.__enter__()
        _frames.stack.append(frame)


class LeaveFrame:
    """Forward hook that ends the frame, also where the forward pass raised."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """End this module's frame, if one was started."""
        if torch.compiler.is_compiling() or not _frames.stack or _frames.stack[-1].module is not module:
            return
        frame = _frames.stack.pop()
        frame.made = {}
        frame.hooks.__exit__(None, None, None)


def install_(module: nn.Module) -> tuple[RemovableHandle, ...]:
    """Make every later call of the module keep recipes; return the handles that undo it.

    The module's weight and its input each install their own pair, so that either may go first: the frames then nest.
    """
    enter = module.register_forward_pre_hook(EnterFrame())
    return enter, module.register_forward_hook(LeaveFrame(), always_call=True)
