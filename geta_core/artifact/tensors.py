"""Which tensors an artifact stores, and in which type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx, nn

from geta_core.config import HIGHEST_BITS, LOWEST_BITS
from geta_core.errors import ArtifactError
from geta_core.quantize.packing import pack, unpack

if TYPE_CHECKING:
    from geta_core.report import QuantizedWeight

Kind = Literal["parameter", "buffer", "unsaved", "constant"]
"""``unsaved``: a buffer that a state_dict leaves out. ``constant``: a tensor of the forward's own code."""


@dataclass
class Held:
    """A tensor of a model under all of its names (tied tensors have several)."""

    tensor: Tensor
    kind: Kind
    names: list[str]


def held_tensors(model: nn.Module, graph: fx.GraphModule) -> list[Held]:
    """Every parameter and buffer of a model once, and the constants that its graph reads."""
    found: dict[int, Held] = {}
    for name, tensor, kind in _named(model):
        found.setdefault(id(tensor), Held(tensor, kind, [])).names.append(name)
    names = {name for held in found.values() for name in held.names}
    for target in dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "get_attr"):
        if target not in names:
            owner, _, leaf = target.rpartition(".")
            value = getattr(graph.get_submodule(owner), leaf)
            if not isinstance(value, Tensor):
                raise ArtifactError(f"save: the graph reads {target}, a {type(value).__name__} and not a tensor")
            found.setdefault(id(value), Held(value, "constant", [])).names.append(target)
    return list(found.values())


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor, Kind]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, "parameter"
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                kind: Kind = "unsaved" if leaf in module._non_persistent_buffers_set else "buffer"
                yield f"{path}.{leaf}" if path else leaf, buffer, kind


def stored(held: Held, weight: QuantizedWeight | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is written of one tensor: by key, and how it is described.

    Raises:
        ArtifactError: if a quantized weight does not lie on its grid.
    """
    name, value = held.names[0], held.tensor.detach().cpu().contiguous()
    entry: dict[str, Any] = {"kind": held.kind, "names": held.names}
    if weight is None:
        return {name: value.clone()}, entry
    step = weight.step.cpu().contiguous()
    level = whole_numbers(name, value, step)
    key, bits = f"{name}.step", weight.bits.reshape(step.shape)
    entry |= {"bits": bits.flatten().tolist(), "step": key, "dtype": _NAMES[value.dtype], "shape": list(value.shape)}
    try:
        return {name: pack(level, bits), key: step}, entry
    except ValueError as error:
        raise ArtifactError(f"save: {name} does not fit its bit width: {error}") from error


def whole_numbers(name: str, value: Tensor, step: Tensor) -> Tensor:
    """The levels of a quantized weight, shaped like it.

    Raises:
        ArtifactError: if it does not lie on its grid.
    """
    level = (value.to(torch.float64) / step.to(torch.float64)).round()
    if not torch.equal(_times(level, step, value.dtype), value):
        raise ArtifactError(f"save: {name} does not lie on its grid; was the model trained after finish?")
    return level


def restored(name: str, entry: Mapping[str, Any], file: Mapping[str, Tensor]) -> Tensor:
    """Undo :func:`stored`, bit for bit.

    Raises:
        ArtifactError: if the description does not fit the tensors.
    """
    kind, value = entry["kind"], file[name]
    if "step" in entry:
        step = file[entry["step"]]
        value = _times(_levels(name, entry, value, step), step, _DTYPES[entry["dtype"]])
    return nn.Parameter(value, value.is_floating_point()) if kind == "parameter" else value


def levels_of(name: str, entry: Mapping[str, Any], file: Mapping[str, Tensor]) -> Tensor:
    """The whole numbers of a packed weight.

    Raises:
        ArtifactError: if the description does not fit the tensors.
    """
    return _levels(name, entry, file[name], file[entry["step"]])


def _levels(name: str, entry: Mapping[str, Any], data: Tensor, step: Tensor) -> Tensor:
    """The whole numbers of a packed weight; nothing of the stated size is made before the data have that size."""
    shape, bits = tuple(entry["shape"]), torch.tensor(entry["bits"])
    plain = all(type(size) is int and size >= 0 for size in shape) and all(type(b) is int for b in entry["bits"])
    fits = plain and data.dtype == torch.uint8 and data.dim() == 1 and step.is_floating_point()
    fits = fits and bits.numel() == step.numel() > 0 and bool(((bits >= LOWEST_BITS) & (bits <= HIGHEST_BITS)).all())
    # Channels lie along one dimension, and every one of them has its own width.
    fits = fits and step.dim() in (0, len(shape)) and sum(size > 1 for size in step.shape) <= 1
    fits = fits and all(size in (1, whole) for size, whole in zip(step.shape, shape, strict=False))
    if not fits:
        raise ArtifactError(f"load: {name!r} is not stored as whole numbers with a step")
    try:
        return unpack(data, shape, bits.reshape(step.shape))
    except ValueError as error:
        raise ArtifactError(f"load: {name!r} does not have the size that its manifest states: {error}") from error


def _times(level: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """The arithmetic of the quantizer: whole numbers times the step, in float32 or wider."""
    return (level.to(torch.promote_types(step.dtype, torch.float32)) * step).to(dtype)


_DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype) and kind.is_floating_point}
_NAMES = {kind: name for name, kind in _DTYPES.items()}
