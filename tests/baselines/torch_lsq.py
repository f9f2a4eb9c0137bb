"""LSQ as PyTorch itself has it (``torch.ao.quantization._learnable_fake_quantize``), as a method of the same loop.

Quantizers, gradients of the step sizes and their scaling are the library's; model, data, optimizer, course of the
learning rate, pruning and accounting are those of ``prune_then_qat``. Where it differs from this project's LSQ: steps
begin at the range that a moving average has seen; the gradient of an input's step is scaled by the elements of the
whole batch instead of one example's; and values less than half a step beyond the range count as inside it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import MovingAverageMinMaxObserver
from torch.nn.utils import parametrize

import geta_core as geta
from baselines.helpers.lsq import LearnedSteps
from baselines.prune_then_qat import PruneThenQat


def library_quantizer(bits: int, signed: bool) -> nn.Module:
    """The library's quantizer on the grid of this project: no zero point, levels -Q .. Q or 0 .. Q."""
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    found = _LearnableFakeQuantize(
        MovingAverageMinMaxObserver,
        quant_min=-top if signed else 0,
        quant_max=top,
        use_grad_scaling=True,
        dtype=torch.qint8 if signed else torch.quint8,
        qscheme=torch.per_tensor_symmetric,
    )
    found.enable_static_observation()
    return cast(nn.Module, found)


class Through(nn.Module):
    """Holds a quantizer without owning it, so that its parameters are not taken for weights of the model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.held = (inner,)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.held[0](x))


class LibrarySteps:
    """Lets the library observe, and learn from a step on; stands where ``LearnedSteps`` does."""

    def __init__(self, quantizers: list[Any], start: int) -> None:
        self.quantizers, self.start = quantizers, start

    def parameters(self) -> list[nn.Parameter]:
        return [each.scale for each in self.quantizers]

    def before_step(self, step: int) -> None:
        pass

    def after_step(self, step: int) -> None:
        if step + 1 == self.start:
            for each in self.quantizers:
                each.enable_param_learning()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("these runs are never interrupted")  # a check of the library keeps no state


@dataclass(frozen=True, kw_only=True)
class AfterPruning(PruneThenQat):
    """``prune_then_qat`` with the library's LSQ."""

    weight_bits: int = 3
    activation_bits: int = 4

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        quantized = geta.prepare(copy.deepcopy(model), example_inputs, self.compression(), calibration=calibration)
        config = replace(self.pruning_config(), sparsity=self.sparsity)
        prepared = geta.prepare(model, example_inputs, config)
        there = dict(model.named_modules())
        for site in quantized.sites:
            module, weight = there[site.module_name], site.kind == "weight"
            bits = self.weight_bits if weight else self.activation_bits
            through = Through(library_quantizer(bits, weight or bool(site.quantizer.signed)))
            if weight:
                parametrize.register_parametrization(module, "weight", through)
            else:
                module.add_module("library", through)
                module.register_forward_pre_hook(quantize_input)
        return prepared

    def learned_steps(self, prepared: geta.Prepared, start: int) -> LearnedSteps:
        found = [each.held[0] for each in prepared.model.modules() if isinstance(each, Through)]
        return cast(LearnedSteps, LibrarySteps(found, start))

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Take the library's quantizers off and give the engine's their steps."""
        steps: dict[tuple[str, str], Any] = {}
        for name, module in list(prepared.model.named_modules()):
            if parametrize.is_parametrized(module):
                steps[name, "weight"] = cast(Any, module).parametrizations.weight[0].held[0]
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            if "library" in module._modules:
                steps[name, "input"] = cast(Any, module).library.held[0]
                module._forward_pre_hooks.clear()
                del module._modules["library"]
        config = replace(self.compression(), sparsity=0.0)
        result = geta.prepare(prepared.model, prepared.inputs, config, calibration=list(calibration))
        for site in result.sites:
            own = steps[site.module_name, site.kind]
            site.quantizer.signed = own.quant_min < 0
            site.quantizer.set_bits_(float(self.weight_bits if site.kind == "weight" else self.activation_bits))
            site.quantizer.set_range_((own.scale.detach() * own.quant_max).reshape(site.quantizer.q_m.shape))
        return geta.finish(result)


@dataclass(frozen=True, kw_only=True)
class Alone(AfterPruning):
    """The same without pruning."""

    sparsity: float = 0.0
    joint: float = 0.0


def quantize_input(module: nn.Module, args: Any) -> Any:
    return (cast(Any, module).library(args[0]), *args[1:])
