"""Small real models with real quantizers and hand-made slots: the optimizer without the graph analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geta_core.config import CompressionConfig
from geta_core.qasso import Schedule
from geta_core.quantize.quantizer import Quantizer
from geta_core.quantize.sites import QuantSite


@dataclass(eq=False)
class Slot:
    name: str
    parameter: nn.Parameter
    dim: int
    group: Tensor


@dataclass(eq=False)
class Toy:
    """What ``geta_core.prepare`` returns, as far as QASSO reads it."""

    model: nn.Module
    config: CompressionConfig
    sites: list[QuantSite] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    family: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    bound: Any = None

    @property
    def num_prunable(self) -> int:
        return self.family.numel()

    def bind(self, optimizer: Any) -> None:
        self.bound = optimizer

    def add_family(self, members: Sequence[tuple[nn.Parameter, int]], count: int, per_group: int = 1) -> None:
        """Add ``count`` groups, each of ``per_group`` adjacent indices of every member (parameter, dimension)."""
        numbers = self.num_prunable + torch.arange(count).repeat_interleave(per_group)
        family = int(self.family.max()) + 1 if self.num_prunable else 0
        self.slots += [Slot(f"slot{len(self.slots)}.{n}", p, dim, numbers) for n, (p, dim) in enumerate(members)]
        self.family = torch.cat([self.family, torch.full((count,), family)])

    def zero_groups(self) -> list[int]:
        """Return the groups whose every row is exactly zero, counted from the parameters."""
        zero = torch.ones(self.num_prunable + 1, dtype=torch.bool)
        for slot in self.slots:
            rows = (
                slot.parameter.detach().cpu().movedim(slot.dim, 0).flatten(1)
                if slot.parameter.dim() > 1
                else (slot.parameter.detach().cpu().unsqueeze(1))
            )
            for number, row in zip(slot.group.tolist(), rows, strict=True):
                zero[number] &= bool((row == 0).all())
        return zero[:-1].nonzero().flatten().tolist()


def quantize_weight(toy: Toy, name: str, channel_axis: int | None = None) -> None:
    module = toy.model.get_submodule(name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    largest = weight.detach().abs()
    if channel_axis is None:
        top = largest.max()
    else:
        top = largest.amax([axis for axis in range(weight.dim()) if axis != channel_axis], keepdim=True)
    quantizer = Quantizer(
        top, toy.config.initial_bits, learn_exponent=toy.config.learn_exponent, channel_axis=channel_axis
    )
    parametrize.register_parametrization(module, "weight", quantizer)
    toy.sites.append(
        QuantSite(
            name=f"{name}.weight", kind="weight", quantizer=quantizer, module=module, module_name=name,
            parameter_name="weight", numel=weight.numel(),
        )
    )  # fmt: skip


def quantize_input(toy: Toy, name: str, top: float, signed: bool, numel: int) -> None:
    module = toy.model.get_submodule(name)
    dtype = next(module.parameters()).dtype
    quantizer = Quantizer(
        torch.tensor(top, dtype=dtype),
        toy.config.initial_bits,
        signed=signed,
        learn_exponent=toy.config.learn_activation_exponent,
    )
    module.input_quantizer = quantizer
    module.register_forward_pre_hook(lambda module, args: (module.input_quantizer(args[0]), *args[1:]))
    toy.sites.append(
        QuantSite(name=f"{name}.input", kind="input", quantizer=quantizer, module=module, module_name=name, numel=numel)
    )


def original(module: nn.Module) -> nn.Parameter:
    """Return the float weight under the quantizer."""
    if parametrize.is_parametrized(module):
        return module.parametrizations["weight"].original  # type: ignore[index, return-value]
    return module.weight  # type: ignore[return-value]


def mlp(config: CompressionConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Toy:
    """6 -> 8 -> 10 -> 3 with relu; both hidden layers are prunable."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3)).to(dtype)
    toy = Toy(model, config)
    for position, name in enumerate(("0", "2", "4")):
        if config.weight_bits:
            quantize_weight(toy, name, 0 if config.per_channel else None)
        if config.activation_bits:
            quantize_input(toy, name, 3.0, signed=position == 0, numel=(6, 8, 10)[position])
    for name, count in (("0", 8), ("2", 10)):
        module = model.get_submodule(name)
        toy.add_family([(original(module), 0), (module.bias, 0)], count)  # type: ignore[list-item]
    return toy


class ConvNet(nn.Module):
    """conv, BN, relu, transposed conv, BN, relu, pooling, linear: rows on dimension 0 and on dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 12, 2, stride=2)
        self.norm2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = self.norm2(self.up(x)).relu()
        return self.head(x.mean((2, 3)))


def conv_net(config: CompressionConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> Toy:
    """8 groups on dimension 0, and 6 groups of two channels each (as heads are) on dimension 1."""
    torch.manual_seed(seed)
    model = ConvNet().to(dtype)
    toy = Toy(model, config)
    for name, axis in (("conv", 0), ("up", 1), ("head", 0)):
        if config.weight_bits:
            quantize_weight(toy, name, axis if config.per_channel else None)
        if config.activation_bits:
            quantize_input(toy, name, 3.0, signed=name == "conv", numel=100)
    toy.add_family([(original(model.conv), 0), (model.norm.weight, 0), (model.norm.bias, 0)], 8)
    up_bias = model.up.bias
    assert up_bias is not None
    toy.add_family([(original(model.up), 1), (up_bias, 0), (model.norm2.weight, 0), (model.norm2.bias, 0)], 6, 2)
    return toy


def batch(toy: Toy, step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of one step."""
    generator = torch.Generator().manual_seed(1000 + step)
    dtype = next(toy.model.parameters()).dtype
    if isinstance(toy.model, ConvNet):
        return (
            torch.randn(size, 3, 5, 5, generator=generator, dtype=torch.float64).to(dtype),
            torch.randn(size, 4, generator=generator, dtype=torch.float64).to(dtype),
        )
    return (
        torch.randn(size, 6, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(size, 3, generator=generator, dtype=torch.float64).to(dtype),
    )


def backward(toy: Toy, step: int, scale: float = 1.0) -> Tensor:
    """Do the forward and backward pass of one step; return the loss."""
    x, y = batch(toy, step)
    loss = (toy.model(x) - y).square().mean()
    (loss * scale).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def train(toy: Toy, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(toy, step)
        optimizer.step()


def schedule(
    warmup: int = 2, projection: int = 6, joint: int = 9, cooldown: int = 4, B: int = 3, P: int = 3
) -> Schedule:
    return Schedule(
        warmup=warmup,
        projection=projection,
        joint=joint,
        cooldown=cooldown,
        projection_periods=B,
        pruning_periods=P,
    )
