"""The nets that are measured, and one training step of each in the variants that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geta_core as geta
from orchestration.models.registry import build, example_inputs


@dataclass(frozen=True)
class Net:
    """A net, its batch and its optimizer.

    Attributes:
        key: name in the tables of bounds.
        model: registered model.
        batch: examples per step.
        activations: whether inputs are quantized too in the comparison of the optimizers, as in the paper's tables.
        rounds: rounds that count, as a share of those asked for.
    """

    key: str
    model: str
    batch: int
    optimizer: type[torch.optim.Optimizer]
    keywords: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    activations: bool = False
    rounds: float = 1.0

    @property
    def title(self) -> str:
        """What the report calls it."""
        shape = "x".join(map(str, example_inputs(self.model, 2, **self.options)[0].shape[1:]))
        return f"{self.key} {self.batch} x {shape}, {self.optimizer.__name__}"


SGD: Mapping[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
ADAMW: Mapping[str, Any] = {"lr": 1e-5, "weight_decay": 1e-2}
NETS: Mapping[str, Net] = {
    net.key: net
    for net in (
        # Short steps are noisy: they get more rounds.
        Net("resnet20", "resnet20", 64, torch.optim.SGD, SGD, rounds=3),
        Net("resnet56", "resnet56", 64, torch.optim.SGD, SGD, rounds=3),
        Net("vgg7", "vgg7", 64, torch.optim.SGD, SGD, activations=True),
        # Dropout is off: its random numbers would add the same time to both sides of every ratio.
        Net("encoder", "bert_layers", 8, torch.optim.AdamW, ADAMW, {"dropout": 0.0}, rounds=0.5),
    )
}


def compression(*, activations: bool, learned: bool, recompute: bool = False) -> geta.CompressionConfig:
    """Return 4 to 8 bits for weights and, where asked for, inputs."""
    return geta.CompressionConfig(
        sparsity=0.5,
        weight_bits=(4, 8),
        activation_bits=(4, 8) if activations else None,
        learn_exponent=learned,
        learn_activation_exponent=learned and activations,
        recompute=recompute,
    )


class Trainee:
    """A model on a device with its batch; float, or prepared for compression.

    Args:
        net: what to build.
        device: where.
        config: of the compression, None for the float model.
        autocast: type of the mixed precision, None for float32.
    """

    def __init__(
        self,
        net: Net,
        device: torch.device,
        config: geta.CompressionConfig | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        torch.manual_seed(0)
        model = build(net.model, **net.options)
        (x,) = example_inputs(net.model, net.batch, **net.options)
        images = x.dim() == 4
        layout = torch.channels_last if device.type == "cuda" and images else torch.preserve_format
        self.device, self.autocast = device, autocast
        self.model: nn.Module = model.to(device=device).to(memory_format=layout)  # type: ignore[call-overload]
        self.x = x.to(device=device, memory_format=layout)
        self.target = torch.randint(10, (net.batch,), device=device) if images else None
        self.prepared: geta.Prepared | None = None
        if config is not None:
            self.prepared = geta.prepare(self.model, self.x[:2], config)
            self.model = self.prepared.model
        self.model.train()

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            out: Tensor = self.model(self.x)
            return out.square().mean() if self.target is None else F.cross_entropy(out, self.target)

    def forward_backward(self) -> None:
        """Compute fresh gradients."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()

    def plain_optimizer(self, net: Net) -> torch.optim.Optimizer:
        """Return the net's torch.optim optimizer of all parameters; those of quantizers have their own group."""
        own: list[nn.Parameter] = []
        if self.prepared is not None:
            quantizers = {id(site.quantizer): site.quantizer for site in self.prepared.sites}
            own = [parameter for quantizer in quantizers.values() for parameter in quantizer.parameters()]
        ids = set(map(id, own))
        groups: list[dict[str, Any]] = [{"params": [p for p in self.model.parameters() if id(p) not in ids]}]
        if own:
            groups.append({"params": own, "lr": 1e-6, "weight_decay": 0.0})
        return net.optimizer(groups, **net.keywords)
