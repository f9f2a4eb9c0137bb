"""Put a module of a method's own in the place of a quantizer, and the quantizer back."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.nn.utils import parametrize

from geta_core.quantize import QuantSite
from geta_core.quantize.attach import INPUT_QUANTIZER


def swap_(site: QuantSite, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` wherever the site runs it: in the weight's parametrizations, or at the layer's input.

    The site itself keeps its quantizer, whose parameters the accountant knows.
    """
    if site.kind == "input":
        setattr(site.module, INPUT_QUANTIZER, new)
        return
    for owner, name in site.owners:
        if not parametrize.is_parametrized(owner, name):
            continue
        chain = cast(nn.ModuleList, cast(nn.ModuleDict, owner.parametrizations)[name])
        for position, each in enumerate(chain):
            if each is old:
                chain[position] = new
