"""Which code computes the two formulas: plain, in cache-sized blocks, or compiled.

``eager`` runs large per-tensor quantizers on the CPU in blocks that stay in the cache, and everything else plainly.
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
from geta_core.quantize import math

Kernel = Literal["auto", "eager", "compiled"]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]

BLOCK = 1 << 17
"""Elements per block; a few float32 buffers of this size stay in the caches of one core."""
_LEAST = 1 << 15
"""Elements from which on the blocked code is worth its bookkeeping: it makes no temporaries of the tensor's size."""

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
    order = _memory_order(x) if _worth_blocks(x, d) else None
    if order is None:
        return math.quantize(x, d, q_m, t, signed)
    out = torch.empty_like(x)
    _blocked_forward(_flat(x, order), _flat(out, order), d, q_m, t, signed)
    return out


def backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool = False
) -> Gradients:
    """Return :func:`geta_core.quantize.math.quantize_backward` of the arguments by the chosen code."""
    if torch.compiler.is_compiling():
        return math.quantize_backward(g, x, d, q_m, t, signed, chain_rule)
    if _use_compiled(x):
        return _compiled_backward(g, x, d, q_m, t, signed, chain_rule)
    order = _memory_order(x) if _worth_blocks(x, d) and not chain_rule else None
    if order is None:
        return math.quantize_backward(g, x, d, q_m, t, signed, chain_rule)
    g = _aligned(g, x)
    g_x = torch.empty_like(g)
    return g_x, *_blocked_backward(_flat(g, order), _flat(x, order), _flat(g_x, order), d, q_m, t, signed)


def _worth_blocks(x: Tensor, d: Tensor) -> bool:
    return d.dim() == 0 and x.device.type == "cpu" and x.numel() >= _LEAST


def _memory_order(x: Tensor) -> list[int] | None:
    """Return the dimensions from the slowest to the fastest in memory, or None where x has gaps or overlaps."""
    if x.is_contiguous():
        return list(range(x.dim()))
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return order if x.permute(order).is_contiguous() else None


def _flat(x: Tensor, order: list[int]) -> Tensor:
    """Return a detached one-dimensional view of the dense x in memory order."""
    return x.detach().permute(order).view(-1)


def _aligned(g: Tensor, x: Tensor) -> Tensor:
    """Return g with the memory layout of the dense x."""
    return g if g.stride() == x.stride() else torch.empty_like(x, dtype=g.dtype).copy_(g)


def _widened(block: Tensor, scratch: Tensor) -> Tensor:
    return block if block.dtype == scratch.dtype else block.to(scratch.dtype)


def _blocked_forward(x: Tensor, out: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> None:
    """Write x^Q of the flat x into the flat out; the operations are those of the plain formula, in its order."""
    dtype = math.working_dtype(x.dtype)
    d, q_m, t = d.detach().to(dtype), q_m.detach().to(dtype), None if t is None else t.detach().to(dtype)
    low, floor = -q_m, math.power_floor(dtype)
    buffers = torch.empty(2, min(BLOCK, x.numel()), dtype=dtype)
    for source, target in zip(torch.split(x, BLOCK), torch.split(out, BLOCK), strict=True):
        a, b = buffers[:, : source.numel()]
        source = _widened(source, a)
        b = target if target.dtype == dtype else b
        if t is None:
            if signed:
                torch.minimum(source, q_m, out=b)
                torch.maximum(b, low, out=b)
            else:
                torch.clamp(source, min=0.0, out=b)
                torch.minimum(b, q_m, out=b)
            b.div_(d).round_().mul_(d)
        else:
            _magnitude(source, q_m, floor, signed, out=b)
            b.log2_().mul_(t).exp2_().div_(d).round_()
            b.mul_(_sign(source, signed, out=a)).mul_(d)
        if b is not target:
            target.copy_(b)


def _magnitude(x: Tensor, q_m: Tensor, floor: float, signed: bool, out: Tensor) -> Tensor:
    if signed:
        torch.abs(x, out=out)
        out.clamp_(min=floor)
    else:
        torch.clamp(x, min=floor, out=out)
    return torch.minimum(out, q_m, out=out)


def _sign(x: Tensor, signed: bool, out: Tensor) -> Tensor:
    # A comparison into a float buffer is vectorised, one into booleans is several times slower.
    return torch.sign(x, out=out) if signed else torch.gt(x, 0.0, out=out)


def _blocked_backward(
    g: Tensor, x: Tensor, g_x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Write the gradient of x into the flat g_x and return those of d, q_m and t."""
    dtype = math.working_dtype(x.dtype)
    step, top, exponent = d.detach().to(dtype), q_m.detach().to(dtype), None if t is None else t.detach().to(dtype)
    buffers = torch.empty(3, min(BLOCK, x.numel()), dtype=dtype)
    sums = []
    for g_block, x_block, target in zip(*(torch.split(v, BLOCK) for v in (g, x, g_x)), strict=True):
        scratch = buffers[:, : x_block.numel()]
        wide_g, wide_x = _widened(g_block, scratch[0]), _widened(x_block, scratch[0])
        result = target if target.dtype == dtype else torch.empty_like(wide_g)
        sums.append(_backward_block(wide_g, wide_x, result, scratch, step, top, exponent, signed))
        if result is not target:
            target.copy_(result)
    total = torch.stack(sums).sum(0)
    if t is None or exponent is None:
        return total[0].to(d.dtype), total[1].to(q_m.dtype), None
    slope = exponent * math.power(top, exponent - 1)
    return total[0].to(d.dtype), (total[1] * slope).to(q_m.dtype), (total[2] * math.LN_2).to(t.dtype)


def _backward_block(
    g: Tensor, x: Tensor, g_x: Tensor, scratch: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool
) -> Tensor:
    """Write g_x of one block; return the sums that belong to d, q_m and, with t, to t."""
    a, b, c = scratch
    if signed:
        torch.minimum(x, q_m, out=a)
        torch.maximum(a, -q_m, out=a)
    else:
        torch.clamp(x, min=0.0, out=a)
        torch.minimum(a, q_m, out=a)
    torch.eq(a, x, out=g_x)
    g_x.mul_(g)
    if signed:
        torch.sub(g, g_x, out=b)
    else:
        torch.gt(x, q_m, out=b)
        b.mul_(g)
    g_q = torch.dot(b, torch.sign(a, out=c))
    if t is None:
        a.div_(d)
        torch.round(a, out=b)
        return torch.stack((torch.dot(b.sub_(a), g), g_q))
    _sign(x, signed, out=c)
    c.mul_(g)
    log = _magnitude(x, q_m, math.power_floor(x.dtype), signed, out=a).log2_()
    clip = torch.mul(log, t, out=b).exp2_()
    g_t = torch.dot(log.mul_(clip), c)
    clip.div_(d)
    torch.round(clip, out=a)
    return torch.stack((torch.dot(a.sub_(clip), c), g_q, g_t))


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

    Each rank, Parameter and requires_grad flag would be a specialisation of its own; so would the rank of a view's
    base, and what detach() returns is a view.
    """
    return None if value is None else value.data


def _compiled_forward(x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool) -> Tensor:
    order = _memory_order(x) if d.dim() == 0 else None
    source = x if order is None else _flat(x, order)
    body = _compiled(math.quantize, _key(x, d, t, signed))
    out = cast(Tensor, body(_bare(source), _bare(d), _bare(q_m), _bare(t), signed))
    return out if order is None else _unflat(out, x, order)


def _compiled_backward(
    g: Tensor, x: Tensor, d: Tensor, q_m: Tensor, t: Tensor | None, signed: bool, chain_rule: bool
) -> Gradients:
    order = _memory_order(x) if d.dim() == 0 else None
    pair = (g, x) if order is None else (_flat(_aligned(g, x), order), _flat(x, order))
    body = _compiled(math.quantize_backward, _key(x, d, t, signed))
    g_x, g_d, g_q, g_t = body(*map(_bare, (*pair, d, q_m, t)), signed, chain_rule)
    return g_x if order is None else _unflat(g_x, x, order), g_d, g_q, g_t


def _unflat(flat: Tensor, like: Tensor, order: list[int]) -> Tensor:
    """Undo :func:`_flat` for a tensor with the shape and layout of ``like``."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return flat.view([like.shape[i] for i in order]).permute(inverse)
