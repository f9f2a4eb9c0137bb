"""Models that carry somebody else's quantizers have the groups of their float twins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import geta_core as geta
from geta_core.prepared import Prepared
from tests.geta_core.graph.nets import gap, image, run

Indices = frozenset[tuple[str, int, tuple[int, ...]]]


class Block(nn.Module):
    """A residual block of two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.hidden, self.head = nn.Linear(6, 7), nn.Linear(7, 4)
        self.first, self.second, self.third = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.stem(x))
        y = y + self.two(self.second(self.one(y)))
        y = self.third(self.hidden(y.mean((2, 3))))
        result: Tensor = self.head(y)
        return result


def groups(prepared: Prepared, names: set[str]) -> set[tuple[bool, Indices]]:
    """Each group as indices of the float model's parameters, and whether it may go."""
    found = set()
    for group in prepared.graph.groups:
        members = frozenset((m.name, m.dim, m.indices) for m in group.members if m.name in names)
        if members:
            found.add((group.pinned is None, members))
    return found


def prepared(model: nn.Module, x: Tensor) -> Prepared:
    model.eval()
    return geta.prepare(model, x, geta.CompressionConfig(weight_bits=None))


def assert_like_the_float_twin(float_model: nn.Module, quantized: nn.Module, x: Tensor) -> Prepared:
    twin = prepared(float_model, x)
    found = prepared(quantized, x)
    names = {name for name, _ in float_model.named_parameters()}
    assert names <= set(found.graph.capture.tensors), "the quantized model keeps the names"
    here, there = groups(found, names), groups(twin, names)
    assert {group for group in here if group[0]} == {group for group in there if group[0]}
    # A quantizer may read more of a weight, such as the places of a kernel: those stay, as in any model.
    assert there <= here
    assert found.num_prunable == twin.num_prunable > 0
    return found


# ---------------------------------------------------------------- plain tensor code


def rounded(x: Tensor) -> Tensor:
    """Round with a straight-through gradient."""
    return (x.round() - x).detach() + x


class Lsq(nn.Module):
    """Learned step size, arXiv:1902.08153, as plain tensor code."""

    def __init__(self, count: int, signed: bool) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.05))
        self.low, self.high, self.scale = (-8 if signed else 0), 7, (7 * count) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        step = (self.step - self.step * self.scale).detach() + self.step * self.scale
        return rounded(torch.clamp(x / step, self.low, self.high)) * step


class Power(nn.Module):
    """The quantizer of arXiv:2502.16638 as a branch of plain tensor code: sign, abs, pow, clamp, where, round."""

    def __init__(self, count: int, signed: bool) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.tensor(0.02))
        self.q_m, self.t = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(1.1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.abs()
        inside = size <= self.q_m
        clipped = torch.where(inside, size.clamp(min=1e-12).pow(self.t), self.q_m.pow(self.t))
        return x.sign() * self.d * rounded(clipped / self.d)


class QuantizedInput(nn.Module):
    """A layer with a quantizer inserted before it."""

    def __init__(self, layer: nn.Module, quantizer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.layer, self.quantizer = [layer], quantizer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer[0]
        x = self.quantizer(x)
        if isinstance(layer, nn.Conv2d):
            return nn.functional.conv2d(x, self.weight, self.bias, layer.stride, layer.padding)
        return nn.functional.linear(x, self.weight, self.bias)


@pytest.mark.parametrize("kind", [Lsq, Power])
@pytest.mark.parametrize("where", ["attached", "inserted", "both"])
def test_hand_written(kind: Callable[[int, bool], nn.Module], where: str) -> None:
    model = Block()
    quantized = copy.deepcopy(model)
    for name, layer in list(quantized.named_modules()):
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        if where != "inserted":
            parametrize.register_parametrization(layer, "weight", kind(layer.weight.numel(), True))
        if where == "inserted":
            setattr(quantized, name, QuantizedInput(layer, kind(64, False)))
        elif where == "both":
            layer.register_forward_pre_hook(_Hook(kind(64, False)))
    assert_like_the_float_twin(model, quantized, image())


class _Hook:
    """Quantizes the input of a layer from outside of the module tree."""

    def __init__(self, quantizer: nn.Module) -> None:
        self.quantizer = quantizer.requires_grad_(False)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.quantizer(args[0]), *args[1:])


# ---------------------------------------------------------------- torch.ao, FX graph mode


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["x86", "qnnpack"])
def test_torch_ao_fx(backend: str) -> None:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    model = Block()
    quantized = prepare_qat_fx(copy.deepcopy(model).train(), get_default_qat_qconfig_mapping(backend), (image(),))
    quantized(image())
    assert any("fake_quant" in name for name, _ in quantized.named_modules())
    assert_like_the_float_twin(model, quantized, image())


# ---------------------------------------------------------------- torchao


@pytest.mark.needs("torchao")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_torchao_pt2e() -> None:
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    model = Block()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    batch = {"x": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(copy.deepcopy(model).train(), (image(),), dynamic_shapes=batch).module()
    quantized = prepare_qat_pt2e(exported, quantizer)
    quantized(image())
    allow_exported_model_train_eval(quantized)
    assert_like_the_float_twin(model, quantized, image())


class Mlp(nn.Module):
    """Linear layers alone, which is what torchao's QAT treats."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).relu()
        y = y + nn.functional.gelu(self.two(y))
        result: Tensor = self.three(y)
        return result


def _qat_configs() -> dict[str, Any]:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8DynamicActivationIntxWeightConfig
    from torchao.quantization.granularity import PerAxis, PerRow
    from torchao.quantization.qat import IntxFakeQuantizeConfig

    rows = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerAxis(0))
    token = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weight = IntxFakeQuantizeConfig(torch.int4, "per_channel")
    return {
        "per token, asymmetric": {"base_config": rows},
        "weights alone": {"weight_config": weight},
        "inputs alone": {"activation_config": token},
        "eight-bit numbers": {"base_config": Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())},
    }


@pytest.mark.needs("torchao")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["per token, asymmetric", "weights alone", "inputs alone", "eight-bit numbers"])
def test_torchao_qat(name: str) -> None:
    """Its grids follow the range of the values at hand, and always hold zero."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    model, x = Mlp(), torch.randn(2, 16)
    quantized = copy.deepcopy(model)
    quantize_(quantized, QATConfig(step="prepare", **_qat_configs()[name]))
    assert type(quantized.one) is not nn.Linear
    assert gap(run(model, x), run(quantized, x)) > 1e-4, "nothing is quantized"
    assert_like_the_float_twin(model, quantized, x)


@pytest.mark.needs("torchao")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_torchao_qat_by_blocks_of_inputs() -> None:
    """A step for each 16 inputs of a row: whole blocks may go, as the quantizer can only take those."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.qat import QATConfig

    model, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(2, 32)
    base = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(16))
    quantize_(model, QATConfig(base, step="prepare"))
    free = [group for group in prepared(model, x).graph.groups if group.pinned is None]
    rows = [m.indices for group in free for m in group.members if m.name == "0.weight" and m.dim == 0]
    assert sorted(rows) == [tuple(range(start, start + 16)) for start in range(0, 64, 16)]


# ---------------------------------------------------------------- Brevitas


@pytest.mark.needs("brevitas")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_brevitas() -> None:
    import brevitas.nn as qnn

    model, quantized = Block(), Block()
    for name in ("stem", "one", "two"):
        old = getattr(model, name)
        options = {"kernel_size": old.kernel_size, "padding": old.padding, "weight_bit_width": 4}
        setattr(quantized, name, qnn.QuantConv2d(old.in_channels, old.out_channels, **options))
    for name in ("hidden", "head"):
        old = getattr(model, name)
        setattr(quantized, name, qnn.QuantLinear(old.in_features, old.out_features, bias=True, weight_bit_width=4))
    for name in ("first", "second", "third"):
        setattr(quantized, name, qnn.QuantReLU(bit_width=4))
    quantized.train()(image())
    assert_like_the_float_twin(model, quantized, image())
