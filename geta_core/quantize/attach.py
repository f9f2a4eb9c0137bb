"""Attach quantizers to the weights and inputs of a model's layers, and take them off again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geta_core.config import CompressionConfig
from geta_core.errors import UnsupportedOpError
from geta_core.quantize import math, recompute
from geta_core.quantize.ahead import Ahead
from geta_core.quantize.attention import Attention, replace_attention_
from geta_core.quantize.hooks import QuantizeInput
from geta_core.quantize.quantizer import Quantizer
from geta_core.quantize.sites import QuantSite

INPUT_QUANTIZER = "input_quantizer"
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_ATTENTION_INPUTS = ("query", "key", "value")

Owners = tuple[tuple[nn.Module, str], ...]


def quantizable_weights(module: nn.Module) -> dict[str, int]:
    """Return the names of the module's weights that are quantized, each with the axis of its output channels.

    A transposed convolution stores [in, out/groups, ...]; with several groups the output channels of one index share
    the entry of that index, since a tensor that broadcasts against the weight cannot tell the groups apart.
    """
    if isinstance(module, _LINEAR):
        return {"weight": 0}
    if isinstance(module, _TRANSPOSED):
        return {"weight": 1}
    if isinstance(module, nn.MultiheadAttention):
        return {name: 0 for name in _PROJECTIONS if getattr(module, name, None) is not None}
    transformers_conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    if transformers_conv1d is not None and isinstance(module, transformers_conv1d):
        return {"weight": 1}
    return {}


def attach(model: nn.Module, config: CompressionConfig) -> list[QuantSite]:
    """Put quantizers on the model's weights and, where activation_bits is given, on its layers' inputs, in place.

    Layers: Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, MultiheadAttention (turned into the drop-in first) and Hugging
    Face's Conv1D, subclasses included. A tied weight gets one quantizer and one site, at all of its owners. Weights
    start at q_m = max|W| (where that is 0, the largest of the tensor, else 1); inputs at q_m = 1, signed, until they
    are calibrated. An attention's query, key and value share one quantizer, and are quantized once where they are one
    tensor; a subclass of MultiheadAttention gets none, since what reaches its in-projection is unknown.

    Returns:
        The sites: first the weights, then the inputs, in the order of ``model.named_modules()``.

    Raises:
        UnsupportedOpError: a weight is already parametrized, or computed anew by a hook, or not yet initialised.
    """
    if config.weight_bits is None and config.activation_bits is None:
        return []
    layers = [(name, module) for name, module in model.named_modules() if quantizable_weights(module)]
    for name, module in layers:
        _check(name, module)
    replace_attention_(model)
    weights = _attach_weights(model, layers, config) if config.weight_bits is not None else []
    return weights + (_attach_inputs(layers, config) if config.activation_bits is not None else [])


def _check(name: str, module: nn.Module) -> None:
    shown = name or type(module).__name__
    if hasattr(module, INPUT_QUANTIZER):
        raise UnsupportedOpError(f"{shown} already has an {INPUT_QUANTIZER!r}: a model can be prepared only once")
    for parameter_name in quantizable_weights(module):
        if parametrize.is_parametrized(module, parameter_name):
            raise UnsupportedOpError(
                f"{shown}.{parameter_name} must be a plain parameter, but it is already parametrized; first call "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, {parameter_name!r})"
            )
        parameter = dict(module.named_parameters(recurse=False)).get(parameter_name)
        if parameter is None:
            raise UnsupportedOpError(
                f"{shown}.{parameter_name} must be a plain parameter, but a hook computes it (such as the old "
                f"torch.nn.utils.weight_norm); remove that hook first"
            )
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UnsupportedOpError(f"{shown}.{parameter_name} has no shape yet; run the model once before")


def _owners(model: nn.Module) -> dict[int, Owners]:
    """Return every holder of every parameter, by the parameter's id."""
    found: dict[int, Owners] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found[id(parameter)] = (*found.get(id(parameter), ()), (module, name))
    return found


def _attach_weights(
    model: nn.Module, layers: Iterable[tuple[str, nn.Module]], config: CompressionConfig
) -> list[QuantSite]:
    owners = _owners(model)
    sites: list[QuantSite] = []
    done: set[int] = set()
    for module_name, module in layers:
        for parameter_name, axis in quantizable_weights(module).items():
            parameter = cast(nn.Parameter, getattr(module, parameter_name))
            if id(parameter) in done:
                continue
            done.add(id(parameter))
            quantizer = Quantizer(
                weight_range(parameter, axis if config.per_channel else None),
                config.initial_bits,
                learn_exponent=config.learn_exponent,
                channel_axis=axis if config.per_channel else None,
                recompute=config.recompute,
            )
            site = QuantSite(
                name=f"{module_name}.{parameter_name}".lstrip("."),
                kind="weight",
                quantizer=quantizer,
                module=module,
                module_name=module_name,
                parameter_name=parameter_name,
                numel=parameter.numel(),
                owners=owners[id(parameter)],
            )
            sites.append(site)
    # Only now: registering turns the parameters into properties, which the search for ties must not evaluate.
    for site in sites:
        for owner, name in site.owners:
            parametrize.register_parametrization(owner, name, site.quantizer)
            if config.recompute:
                site.handles += recompute.install_(owner)
    if not config.recompute and len(sites) > 1:  # a recipe is noted in the layer's turn
        ahead = Ahead(model, [(site.parametrizations, site.quantizer) for site in sites])
        for site in sites:
            site.ahead = ahead
    return sites


def weight_range(weight: Tensor, axis: int | None) -> Tensor:
    """Return max|W|, 0-dim or with one entry per index of ``axis``, never 0."""
    with torch.no_grad():
        magnitude = weight.detach().abs().to(math.working_dtype(weight.dtype))
        largest = magnitude.max()
        fallback = torch.where(largest > 0, largest, torch.ones_like(largest))
        if axis is None:
            return fallback
        others = [i for i in range(weight.dim()) if i != axis]
        per_channel = magnitude.amax(dim=others, keepdim=True) if others else magnitude
        return torch.where(per_channel > 0, per_channel, fallback)


def _attach_inputs(layers: Iterable[tuple[str, nn.Module]], config: CompressionConfig) -> list[QuantSite]:
    sites = []
    for module_name, module in layers:
        if isinstance(module, nn.MultiheadAttention) and not isinstance(module, Attention):
            continue
        weight = next(getattr(module, name) for name in quantizable_weights(module))
        quantizer = Quantizer(
            torch.ones((), dtype=weight.dtype, device=weight.device),
            config.initial_bits,
            learn_exponent=config.learn_activation_exponent,
            recompute=config.recompute,
        )
        quantizer.train(module.training)
        module.add_module(INPUT_QUANTIZER, quantizer)
        # The frame of recompute comes first: x^Q must be made inside it.
        frame = recompute.install_(module) if config.recompute else ()
        hook = QuantizeInput(_ATTENTION_INPUTS if isinstance(module, nn.MultiheadAttention) else ())
        site = QuantSite(
            name=f"{module_name}.input".lstrip("."),
            kind="input",
            quantizer=quantizer,
            module=module,
            module_name=module_name,
            handles=(*frame, module.register_forward_pre_hook(hook, with_kwargs=True)),
        )
        sites.append(site)
    return sites


def detach_input_(site: QuantSite) -> None:
    """Remove an input site's hooks and quantizer from its module; a second call does nothing."""
    _remove_hooks_(site)
    if getattr(site.module, INPUT_QUANTIZER, None) is site.quantizer:
        delattr(site.module, INPUT_QUANTIZER)


def detach_weight_(site: QuantSite) -> None:
    """Make a weight the plain float parameter again, at all of its owners; a second call does nothing."""
    _remove_hooks_(site)
    if site.ahead is not None:
        site.ahead.forget_(site.quantizer)
        site.ahead = None
    for owner, name in site.owners:
        if parametrize.is_parametrized(owner, name):
            _own_class_(owner)
            parametrize.remove_parametrizations(owner, name, leave_parametrized=False)


def _remove_hooks_(site: QuantSite) -> None:
    for handle in site.handles:
        handle.remove()
    site.handles = ()


@torch.no_grad()
def bake_(model: nn.Module, sites: Iterable[QuantSite]) -> None:
    """Replace each quantized weight of the model by a plain parameter that holds the quantized values, in place.

    The parameter is the float original, overwritten, under its old name at every owner, so that ties and an optimizer's
    references stay. Input sites are left alone. The values are computed once per site (quantizing twice would not give
    the same values when the exponent is not 1) and equal ``quantizer.levels(original) * quantizer.d``.
    """
    inside = set(map(id, model.modules()))
    for site in sites:
        parameter = site.parameter
        if site.kind != "weight" or parameter is None or id(site.module) not in inside:
            continue
        q = site.quantizer
        values = math.quantize(parameter, q.d, q.q_m, q.t, q.signed)
        detach_weight_(site)
        parameter.copy_(values + 0.0)  # -0.0 becomes 0.0: whole numbers have one zero


def _own_class_(module: nn.Module) -> None:
    """Give the module a class that no other has.

    copy.deepcopy lets a copy share the class that holds the property of its parametrized tensors, and
    remove_parametrizations deletes that property: without this the original would lose its weight.
    """
    cls = type(module)
    content = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, content)
