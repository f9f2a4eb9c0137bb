"""Native slimming: the user's own module class with smaller parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

Keep = Mapping[tuple[str, int], Tensor]
"""Indices that stay, for every (tensor name, dimension) that loses some."""


def cut_(model: nn.Module, keep: Keep) -> None:
    """Cut every parameter and buffer in place; tied parameters stay one object. Attributes of torch's layers follow.

    Args:
        model: a model without parametrizations.
        keep: names as in ``model.named_parameters()`` (the first name of a tied tensor).
    """
    per_name: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, dim), index in keep.items():
        per_name.setdefault(name, []).append((dim, index))
    smaller: dict[int, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in per_name:
            smaller[id(tensor)] = cut_tensor(tensor, per_name[name])
    before = {module: _sizes(module) for module in model.modules()}
    groups = _groups_left(model, {id(t): per_name[n] for n, t in model.named_parameters() if n in per_name})
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and id(value) in smaller:
                    cast(dict[str, Tensor], held)[name] = smaller[id(value)]
    for module, left in groups.items():
        module.groups = left
    for module in model.modules():
        _follow(module, before[module])


def _groups_left(model: nn.Module, cuts: Mapping[int, list[tuple[int, Tensor]]]) -> dict[Any, int]:
    """The groups of which any row is left, of each grouped convolution whose weight loses rows."""
    return {
        module: len((index // (len(module.weight) // module.groups)).unique())
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
        for dim, index in cuts.get(id(module.weight), ())
        if dim == 0
    }


def cut_tensor(tensor: Tensor, cuts: list[tuple[int, Tensor]]) -> Tensor:
    """Keep the given indices of each dimension; a parameter stays a parameter."""
    value = tensor.detach()
    for dim, index in cuts:
        value = value.index_select(dim, index.to(value.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value.clone(), requires_grad=tensor.requires_grad)
    return value.clone()


def _sizes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    held = (*module._parameters.items(), *module._buffers.items())
    return {name: tuple(value.shape) for name, value in held if value is not None}


def _conv(module: Any, old: tuple[int, ...]) -> None:
    module.in_channels, module.out_channels = module.groups * module.weight.shape[1], module.weight.shape[0]


def _conv_transposed(module: Any, old: tuple[int, ...]) -> None:
    module.in_channels, module.out_channels = module.weight.shape[0], module.groups * module.weight.shape[1]


def _linear(module: Any, old: tuple[int, ...]) -> None:
    module.out_features, module.in_features = module.weight.shape


def _batch_norm(module: Any, old: tuple[int, ...]) -> None:
    module.num_features = module.weight.shape[0]


def _group_norm(module: Any, old: tuple[int, ...]) -> None:
    size = module.num_channels // module.num_groups
    module.num_channels = module.weight.shape[0]
    module.num_groups = module.num_channels // size


def _layer_norm(module: Any, old: tuple[int, ...]) -> None:
    module.normalized_shape = tuple(module.weight.shape)


def _embedding(module: Any, old: tuple[int, ...]) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _recurrent(module: Any, old: tuple[int, ...]) -> None:
    """Widths of an LSTM, GRU or plain recurrent layer, and its list of weights."""
    hidden = module.weight_hh_l0.shape[1]
    module.input_size = module.weight_ih_l0.shape[1]
    module.proj_size = hidden if module.proj_size else 0
    gates = old[0] // module.hidden_size
    module.hidden_size = module.weight_ih_l0.shape[0] // gates
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


_FOLLOWERS: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any, tuple[int, ...]], None]], ...] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transposed),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    ((nn.Linear,), _linear),
    ((nn.modules.batchnorm._NormBase,), _batch_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding,), _embedding),
    ((nn.RNNBase,), _recurrent),
)


def _follow(module: nn.Module, before: dict[str, tuple[int, ...]]) -> None:
    """Sizes that torch's own layers keep as attributes."""
    if _sizes(module) == before:
        return
    for kinds, follow in _followers():
        if isinstance(module, kinds) and before:
            follow(module, before.get("weight", next(iter(before.values()))))
            return


def _hugging_face_conv1d(module: Any, old: tuple[int, ...]) -> None:
    module.nx, module.nf = module.weight.shape


def _followers() -> tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any, tuple[int, ...]], None]], ...]:
    own = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return _FOLLOWERS if own is None else (*_FOLLOWERS, ((own,), _hugging_face_conv1d))


def integer_attributes(module: nn.Module, value: int) -> list[str]:
    """Attributes of a user's module that hold exactly this integer."""
    if any(isinstance(module, kinds) for kinds, _ in _followers()):
        return []
    return [
        name
        for name, held in vars(module).items()
        if isinstance(held, int) and not isinstance(held, bool) and held == value and value > 1
    ]


def zero_(tensors: Mapping[str, Tensor], indices: Mapping[tuple[str, int], Tensor]) -> None:
    """Set the given indices of each tensor dimension to zero, in place."""
    with torch.no_grad():
        for (name, dim), index in indices.items():
            tensor = tensors[name]
            tensor.index_fill_(dim, index.to(tensor.device), 0)
