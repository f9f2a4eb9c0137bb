"""What the families share: initialisation and the small checks on options that depend on each other."""

from __future__ import annotations

import math

from torch import Tensor, nn

from geta_core.errors import ConfigError

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def he_init_(model: nn.Module) -> None:
    """Initialise in place as He et al. 2015 (arXiv:1502.01852): normal, variance 2 / fan; norms 1 and 0, biases 0.

    The fan of a convolution is its fan_out, which keeps the variance of the gradients (what the reference ResNets
    use); a linear or transposed layer takes its fan_in. Groups and strides count, so that a depthwise filter gets the
    variance of the k x k values that it really sums.
    """
    for module in model.modules():
        fan = _fan(module)
        if fan is not None:
            nn.init.normal_(module.get_parameter("weight"), std=math.sqrt(2 / fan))
        _reset_bias_and_norm_(module)


def _fan(module: nn.Module) -> float | None:
    """Return how many terms an output (or a gradient, for a convolution) sums, None for a module without a kernel."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.ConvTranspose2d):
        overlap = math.prod(module.kernel_size) / math.prod(module.stride)
        return module.in_channels * overlap / module.groups
    if isinstance(module, nn.Conv2d):
        return module.out_channels * math.prod(module.kernel_size) / module.groups
    return None


def trunc_normal_(weight: Tensor, std: float = 0.02) -> None:
    """Fill in place from a normal distribution cut at two deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def trunc_init_(model: nn.Module, std: float = 0.02) -> None:
    """Initialise in place as ViT and BERT do: normal cut at two deviations, norms 1 and 0, biases 0."""
    for module in model.modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Embedding)):
            trunc_normal_(module.weight, std)
        _reset_bias_and_norm_(module)


def _reset_bias_and_norm_(module: nn.Module) -> None:
    if isinstance(module, NORMS) and module.weight is not None:
        nn.init.ones_(module.weight)
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter) and isinstance(module, (*NORMS, *CONVOLUTIONS, nn.Linear)):
        nn.init.zeros_(bias)


def require(model: str, **faults: tuple[bool, str]) -> None:
    """Raise one ConfigError that names every broken condition between options.

    Args:
        model: registered name, for the message.
        faults: per option ``(holds, what must hold, with the values)``.

    Raises:
        ConfigError: at least one condition does not hold.
    """
    broken = [f"model.{option} of {model!r}: {text}" for option, (holds, text) in faults.items() if not holds]
    if broken:
        raise ConfigError(broken)
