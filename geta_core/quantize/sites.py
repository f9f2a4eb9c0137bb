"""Where a model is quantized: one record per quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from geta_core.quantize.ahead import Ahead
from geta_core.quantize.quantizer import Quantizer


@dataclass(eq=False, kw_only=True)
class QuantSite:
    """One quantizer and what it quantizes. Sites compare by identity; copy them together with their model.

    Attributes:
        name: "<module>.weight" (or the parameter's name) for a weight, "<module>.input" for an input.
        kind: "weight" or "input".
        quantizer: shared by all owners of a tied weight.
        module: the layer.
        module_name: its name in the model.
        parameter_name: name of the weight in the layer, None for an input.
        numel: elements of the weight, or elements per example that reach the input, set by calibration (0 before).
        owners: every (module, parameter name) that holds the weight; empty for an input.
        reason: why the site does nothing, None where it works.
        handles: hooks of the site, removed when it is detached or baked.
        ahead: the model's hooks that quantize small weights together, None where there are none.
    """

    name: str
    kind: Literal["weight", "input"]
    quantizer: Quantizer
    module: nn.Module
    module_name: str
    parameter_name: str | None = None
    numel: int = 0
    owners: tuple[tuple[nn.Module, str], ...] = ()
    reason: str | None = None
    handles: tuple[RemovableHandle, ...] = ()
    ahead: Ahead | None = None

    @property
    def fired(self) -> bool:
        """Whether values pass through the quantizer."""
        return self.reason is None

    @property
    def parameter(self) -> nn.Parameter | None:
        """The float original of a weight (after baking, the plain parameter); None for an input."""
        if self.parameter_name is None:
            return None
        if parametrize.is_parametrized(self.module, self.parameter_name):
            return cast(nn.Parameter, self.parametrizations.original)
        return cast(nn.Parameter, getattr(self.module, self.parameter_name))

    @property
    def parametrizations(self) -> parametrize.ParametrizationList:
        """The parametrizations of a weight, while there are any."""
        lists = cast(nn.ModuleDict, self.module.parametrizations)
        return cast(parametrize.ParametrizationList, lists[cast(str, self.parameter_name)])
