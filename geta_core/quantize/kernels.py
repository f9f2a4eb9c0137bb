"""Which code computes the two formulas: plain, in few calls, in cache-sized blocks, or compiled.

``eager`` runs large tensors on the CPU in blocks that stay in the cache, small ones in as few calls as there can be,
and everything else plainly.
``compiled`` runs bodies made by torch.compile on flat views. ``auto`` is ``compiled`` on CUDA where Triton is there,
and ``eager`` elsewhere: on the CPU it needs no compiler and no start-up time. While torch.compile traces the user's
own model the plain formulas are used whatever was chosen, so that they fuse with it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from geta_core.errors import ConfigError, GetaError, closest
from geta_core.quantize import blocks, math, small

Kernel = Literal["auto", "eager", "compiled"]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]

_chosen: Kernel = "auto"


def set_kernel(name: Kernel) -> None:
    """Choose the quantizer's code for this process.

    Raises:
        ConfigError: an unknown name.
        GetaError: ``compiled`` was asked for and no compiler is there.
    """
    global _chosen
    if name not in get_args(Kernel):
        hint = closest(str(name), get_args(Kernel))
        raise ConfigError([f"the kernel must be one of auto, eager, compiled, but got {name!r}{hint}"])
    if name == "compiled":
        _require_compiler("cuda" if torch.cuda.is_available() else "cpu")
    _chosen = name


def get_kernel() -> Kernel:
    """Return the name last given to :func:`set_kernel`."""
    return _chosen


@cache
def compiler_available(device_type: str) -> bool:
    """Tell whether torch.compile can build code for this type of device.

    It needs Triton, or for the CPU a C++ compiler and Python's headers.
    """
    if device_type != "cpu":
        return importlib.util.find_spec("triton") is not None
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return headers and any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _require_compiler(device_type: str) -> None:
    if not compiler_available(device_type):
        need = "a C++ compiler (g++, clang++ or $CXX) and Python's headers" if device_type == "cpu" else "Triton"
        raise GetaError(f"the compiled quantizer kernel needs {need} for {device_type} tensors, or choose 'eager'")


def _use_compiled(x: Tensor) -> bool:
    if _chosen == "compiled":
        _require_compiler(x.device.type)
        return True
    return _chosen == "auto" and x.device.type == "cuda" and compiler_available("cuda")


def forward(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    """Return :func:`geta_core.quantize.math.quantize` of the arguments by the chosen code."""
    if torch.compiler.is_compiling():
        return math.quantize(x, d, q_m, t, signed)
    if _use_compiled(x):
        return _compiled_forward(x, d, q_m, t, signed)
    if is_small(x) and small.fits(x, d, q_m):
        return small.forward(x, d, q_m, t, signed)
    out = blocks.forward(x, d, q_m, t, signed) if _worth_blocks(x, d) else None
    return math.quantize(x, d, q_m, t, signed) if out is None else out


def backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool = False
) -> Gradients:
    """Return :func:`geta_core.quantize.math.quantize_backward` of the arguments by the chosen code."""
    if torch.compiler.is_compiling():
        return math.quantize_backward(g, x, d, q_m, t, signed, chain_rule)
    if _use_compiled(x):
        return _compiled_backward(g, x, d, q_m, t, signed, chain_rule)
    if is_small(x) and small.fits(x, d, q_m) and g.dtype is x.dtype and not chain_rule:
        return small.backward(g, x, d, q_m, t, signed)
    grads = blocks.backward(g, x, d, q_m, t, signed) if _worth_blocks(x, d) and not chain_rule else None
    return math.quantize_backward(g, x, d, q_m, t, signed, chain_rule) if grads is None else grads


def is_small(x: Tensor) -> bool:
    """Tell whether calling the formulas for x takes about as long as computing them."""
    return x.device.type == "cpu" and x.numel() < blocks.LEAST


def _worth_blocks(x: Tensor, d: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() >= blocks.LEAST and d.dim() in (0, x.dim())


Key = tuple[bool, bool, torch.dtype, int, str]


def _key(x: Tensor, d: Tensor, t: Tensor | None, signed: bool) -> Key:
    return signed, t is None, x.dtype, d.dim(), x.device.type


@cache
def _compiled(body: Callable[..., Any], key: Key) -> Callable[..., Any]:
    """Return the compiled body for one kind of call.

    torch.compile counts the specialisations of a code object and gives up at a limit (8). Each kind of call gets a code
    object of its own, so that the limit is out of reach; ``fullgraph`` makes torch raise there, should it be reached,
    instead of running the body eagerly without a word.
    """
    own = FunctionType(body.__code__.replace(), body.__globals__, body.__name__, body.__defaults__)
    return torch.compile(own, dynamic=True, fullgraph=True)


def _bare(value: Tensor | None) -> Tensor | None:
    """Return the value as a tensor that is neither Parameter nor view.

    Each rank, Parameter and requires_grad flag would be a specialisation of its own, and so would the rank of the
    tensor that a view belongs to.
    """
    return None if value is None else value.detach()


def _compiled_forward(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    order = blocks.memory_order(x) if d.dim() == 0 else None
    source = x if order is None else blocks.flat(x, order)
    body = _compiled(math.quantize, _key(x, d, t, signed))
    out = cast(Tensor, body(_bare(source), _bare(d), _bare(q_m), _bare(t), signed))
    return out if order is None else _unflat(out, x, order)


def _compiled_backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool
) -> Gradients:
    order = blocks.memory_order(x) if d.dim() == 0 else None
    pair = (g, x) if order is None else (blocks.flat(blocks.aligned(g, x), order), blocks.flat(x, order))
    body = _compiled(math.quantize_backward, _key(x, d, t, signed))
    g_x, g_d, g_q, g_t = body(*map(_bare, (*pair, d, q_m, t)), signed, chain_rule)
    return g_x if order is None else _unflat(g_x, x, order), g_d, g_q, g_t


def _unflat(flat: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """Undo :func:`geta_core.quantize.blocks.flat` for a tensor with the shape and layout of ``like``."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return flat.view([like.shape[i] for i in order]).permute(inverse)
