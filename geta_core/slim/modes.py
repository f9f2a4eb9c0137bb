"""Graph operations that follow ``module.training``; torch.export freezes them to the mode of the export."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

aten = torch.ops.aten


class BatchNorm(nn.Module):
    """Batch statistics while training, running ones otherwise."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        *settings: Any,
    ) -> Tensor:
        """Normalize ``x`` [N, C, ...]; settings are the frozen mode, momentum, eps and a flag for cuDNN."""
        _, momentum, eps, _ = settings
        return F.batch_norm(x, mean, variance, weight, bias, self.training or mean is None, momentum, eps)


class Dropout(nn.Module):
    """Dropout while training."""

    def forward(self, x: Tensor, p: float, training: bool) -> Tensor:
        """Drop elements of ``x``."""
        return F.dropout(x, p, self.training)


class InstanceNorm(nn.Module):
    """Running statistics where they are kept and the module is not training, else those of each example."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        *settings: Any,
    ) -> Tensor:
        """Normalize ``x`` [N, C, ...]; settings are as for batch norm."""
        _, momentum, eps, _ = settings
        return F.instance_norm(x, mean, variance, weight, bias, self.training or mean is None, momentum, eps)


class FeatureDropout(nn.Module):
    """Dropout of whole channels while training."""

    def forward(self, x: Tensor, p: float, training: bool) -> Tensor:
        """Drop channels of ``x`` [N, C, ...]."""
        return torch.feature_dropout(x, p, self.training)


class RandomMask(nn.Module):
    """Random zeros and ones while training, their mean otherwise: a mask divided by it (stochastic depth) is 1 then."""

    def forward(self, x: Tensor, p: float = 0.5) -> Tensor:
        """Fill ``x`` in place."""
        return x.bernoulli_(p) if self.training else x.fill_(p)


class AlphaDropout(nn.Module):
    """Dropout that keeps mean and variance, while training."""

    def forward(self, x: Tensor, p: float, training: bool) -> Tensor:
        """Drop elements of ``x``."""
        return F.alpha_dropout(x, p, self.training)


class RandomReLU(nn.Module):
    """A random slope below zero while training, the mean slope otherwise."""

    def forward(self, x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
        """Apply to every element of ``x``."""
        return F.rrelu(x, lower, upper, self.training)


class Attention(nn.Module):
    """Scaled dot-product attention; dropout only while training."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, p: float = 0.0, *rest: Any, **named: Any
    ) -> Tensor:
        """Attend; shapes [..., L, E], [..., S, E], [..., S, Ev]."""
        named.pop("dropout_p", None)
        mask = named.pop("attn_mask", mask)
        return F.scaled_dot_product_attention(q, k, v, mask, p if self.training else 0.0, *rest, **named)


class CountIfTraining(nn.Module):
    """A buffer that counts training steps."""

    def forward(self, counter: Tensor, step: int) -> Tensor:
        """Add ``step`` in place while training."""
        return counter.add_(step) if self.training else counter


class DeviceOf(nn.Module):
    """The device of the inputs: what a graph makes anew goes where the module was moved."""

    def forward(self, x: Tensor) -> torch.device:
        """Return the device of ``x``."""
        return x.device


MODES: dict[Any, type[nn.Module]] = {
    aten.batch_norm.default: BatchNorm,
    aten.instance_norm.default: InstanceNorm,
    aten.dropout.default: Dropout,
    aten.dropout_.default: Dropout,
    aten.feature_dropout.default: FeatureDropout,
    aten.feature_dropout_.default: FeatureDropout,
    aten.bernoulli_.float: RandomMask,
    aten.alpha_dropout.default: AlphaDropout,
    aten.alpha_dropout_.default: AlphaDropout,
    aten.rrelu.default: RandomReLU,
    aten.scaled_dot_product_attention.default: Attention,
    aten.add_.Tensor: CountIfTraining,
}
"""Which module replaces which operation of a graph that was exported in train mode."""
REPLACED = "replaced"
"""Where a node says which one it replaces."""


def kind_of(node: fx.Node, counters: set[fx.Node]) -> type[nn.Module] | None:
    """The module that replaces a node; an in-place sum only where it counts steps in a buffer."""
    kind = MODES.get(node.target) if node.op == "call_function" else None
    return None if kind is CountIfTraining and node.args[0] not in counters else kind


def switch(module: fx.GraphModule, counters: set[fx.Node]) -> None:
    """Replace the mode-dependent operations and give ``train()`` and ``eval()`` back."""
    for node in list(module.graph.nodes):
        kind = kind_of(node, counters)
        if kind is None:
            continue
        name = f"_mode_{node.name}"
        module.add_submodule(name, kind())
        with module.graph.inserting_before(node):
            replacement = module.graph.call_module(name, node.args, node.kwargs)
        replacement.meta = {**node.meta, REPLACED: node.name}
        node.replace_all_uses_with(replacement)
        module.graph.erase_node(node)
    _follow_device(module.graph, module)
    enable_modes(module)
    module.graph.lint()
    module.recompile()


def _follow_device(graph: fx.Graph, module: fx.GraphModule) -> None:
    """torch.export writes down the device of the export; the graph asks its first input instead."""
    inputs = [n for n in graph.nodes if n.op == "placeholder" and isinstance(n.meta.get("val"), Tensor)]
    if not inputs:
        return
    here = inputs[0].meta["val"].device
    asked: fx.Node | None = None

    def follow(value: Any) -> Any:
        return asked if isinstance(value, torch.device) and value == here else value

    named = [node for node in graph.nodes if _devices(node)]
    if named:
        module.add_submodule("_mode_device", DeviceOf())
        with graph.inserting_after(next(n for n in reversed(graph.nodes) if n.op == "placeholder")):
            asked = graph.call_module("_mode_device", (inputs[0],))
    for node in named:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), follow)


def _devices(node: fx.Node) -> list[torch.device]:
    found: list[torch.device] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda v: found.append(v) if isinstance(v, torch.device) else v)
    return found


def enable_modes(module: fx.GraphModule) -> None:
    """torch.export forbids ``train()`` and ``eval()`` on its modules; these are nn.Module's own again."""
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
        setattr(module, name, getattr(nn.Module, name).__get__(module, type(module)))
