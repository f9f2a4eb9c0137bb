"""Which tensors an artifact stores, and in which type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx, nn

from geta_core.accounting.cost import NARROW_BITS
from geta_core.errors import ArtifactError

if TYPE_CHECKING:
    from geta_core.finishing import QuantizedWeight

Kind = Literal["parameter", "buffer", "unsaved", "constant"]
"""``unsaved``: a buffer that a state_dict leaves out. ``constant``: a tensor of the forward's own code."""


@dataclass
class Held:
    """A tensor of a model under all of its names (tied tensors have several)."""

    tensor: Tensor
    kind: Kind
    names: list[str]


def integer_type(bits: int) -> torch.dtype:
    """The narrowest type that holds the signed levels of a bit width."""
    return torch.int8 if bits <= NARROW_BITS else torch.int16


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
    level = (value.to(torch.float64) / step.to(torch.float64)).round()
    if not torch.equal(_times(level, step, value.dtype), value):
        raise ArtifactError(f"save: {name} does not lie on its grid; was the model trained after finish?")
    key = f"{name}.step"
    entry |= {"bits": weight.bits.flatten().tolist(), "step": key, "dtype": _NAMES[value.dtype]}
    return {name: level.to(integer_type(int(weight.bits.max()))), key: step}, entry


def restored(name: str, entry: Mapping[str, Any], file: Mapping[str, Tensor]) -> Tensor:
    """Undo :func:`stored`, bit for bit.

    Raises:
        ArtifactError: if the description does not fit the tensors.
    """
    kind, value = entry["kind"], file[name]
    if "step" in entry:
        step = file[entry["step"]]
        fits = value.dtype in (torch.int8, torch.int16) and step.is_floating_point()
        if not fits or torch.broadcast_shapes(value.shape, step.shape) != value.shape:
            raise ArtifactError(f"load: {name!r} is not stored as whole numbers with a step")
        value = _times(value, step, _DTYPES[entry["dtype"]])
    return nn.Parameter(value, value.is_floating_point()) if kind == "parameter" else value


def _times(level: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """The arithmetic of the quantizer: whole numbers times the step, in float32 or wider."""
    return (level.to(torch.promote_types(step.dtype, torch.float32)) * step).to(dtype)


_DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype) and kind.is_floating_point}
_NAMES = {kind: name for name, kind in _DTYPES.items()}
