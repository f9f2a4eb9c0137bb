"""Every network, float and quantized: pruned at random, the slimmed model equals the zeroed one, and lives on."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from orchestration.models import available, build_small, example_inputs

ALWAYS = (
    "vgg7",
    "resnet20",
    "resnet56",
    "resnet18",
    "resnet50",
    "densenet_bc",
    "mobilenetv2",
    "seresnet18",
    "unet",
    "resnet18_gn",
    "mlp",
    "vit",
    "encoder",
)
KINDS: dict[str, dict[str, Any]] = {
    "float": {"weight_bits": None},
    "W": {"weight_bits": (4, 8)},
    "WA": {"weight_bits": (4, 8), "activation_bits": (4, 8)},
}
DEEP = ("resnet56", "resnet50", "densenet_bc", "mobilenetv2")
"""Of these only one kind runs without --long: the one with every quantizer."""
PRUNINGS = 3
EXACT, SINGLE = 1e-10, 1e-5


def _cases() -> list[Any]:
    def long(name: str, kind: str) -> bool:
        return name not in ALWAYS or (name in DEEP and kind != "WA")

    pairs = [
        (name, kind) for name in (*ALWAYS, *(other for other in available() if other not in ALWAYS)) for kind in KINDS
    ]
    return [pytest.param(*pair, marks=[pytest.mark.long] if long(*pair) else []) for pair in pairs]


def _randomized(name: str) -> nn.Module:
    """No tensor keeps a special value: heads that start at zero, fresh biases and running statistics."""
    model = build_small(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std() if parameter.numel() > 1 else torch.tensor(0.1)
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (spread if spread > 0 else 0.1))
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.dim() == 1:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def _half(prepared: geta.Prepared, seed: int) -> list[int]:
    """Half of the groups, one of each family at least kept."""
    left = torch.bincount(prepared.family).tolist()
    chosen: list[int] = []
    for index in torch.randperm(prepared.num_prunable, generator=torch.Generator().manual_seed(seed)).tolist():
        family = int(prepared.family[index])
        if len(chosen) < prepared.num_prunable // 2 and left[family] > 1:
            left[family] -= 1
            chosen.append(index)
    return chosen


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    result: Tensor = model(*inputs)
    return result


def _rows(inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return tuple(x[torch.arange(count) % x.shape[0]] for x in inputs)


def _gap(reference: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        a, b = _outputs(reference, inputs), _outputs(other, inputs)
    return float((a - b).abs().max() / a.abs().max().clamp(min=1))


def _check_single(zeroed: nn.Module, compressed: geta.Compressed, kind: str, inputs: tuple[Tensor, ...]) -> None:
    report = compressed.report
    assert report.max_error64 <= EXACT
    if kind == "WA":
        assert report.flipped_share is not None
        sys.stdout.write(
            f"flipped levels: {report.flipped_share:.2g} of all, outputs differ by {report.max_error32:.2g}\n"
        )
    else:
        for count in (2, 5):
            assert _gap(zeroed.eval(), compressed.model.eval(), _rows(inputs, count)) <= SINGLE


def _check_life(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """It follows train() and eval(), and a training step moves every parameter that has a gradient to finite values."""
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    _outputs(model.train(), _rows(inputs, 5)).float().square().mean().backward()
    optimizer.step()
    assert all(p.grad is None or bool(p.isfinite().all()) for p in model.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("name", "kind"), _cases())
def test_slimmed_equals_zeroed(name: str, kind: str) -> None:
    model = _randomized(name)
    names = {name for name, _ in model.named_parameters()}
    inputs = example_inputs(name, batch=2, small=True)
    prepared = geta.prepare(model, inputs, geta.CompressionConfig(**KINDS[kind]))
    start = copy.deepcopy(model.state_dict())
    for seed in range(PRUNINGS):
        model.load_state_dict(start)
        chosen = _half(prepared, seed)
        prepared.zero_(chosen)
        assert prepared.zero_groups() == len(chosen)
        compressed = geta.finish(prepared)
        assert compressed.report.removed == len(chosen)
        assert {n for n, _ in compressed.model.named_parameters() if "input_quantizer" not in n} == names
        _check_single(_at_whole_bits(prepared), compressed, kind, inputs)
        _check_life(compressed.model, inputs)


def _at_whole_bits(prepared: geta.Prepared) -> nn.Module:
    """A copy of the prepared model at the bit widths that ``finish`` fixes."""
    model, sites = copy.deepcopy((prepared.model, prepared.sites))
    for site in sites:
        site.quantizer.set_bits_(site.quantizer.bits().round())
    return model


@pytest.mark.parametrize(("name", "kind"), _cases())
def test_equality_in_float64_counted_here(name: str, kind: str) -> None:
    """The same in float64 from the start, compared by the test itself in both modes and for two batch sizes."""
    model = _randomized(name).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in example_inputs(name, batch=2, small=True))
    prepared = geta.prepare(model, inputs, geta.CompressionConfig(**KINDS[kind]))
    prepared.zero_(_half(prepared, 7))
    compressed = geta.finish(prepared)
    zeroed = _at_whole_bits(prepared)
    for count in (3, 4):
        assert _gap(zeroed.eval(), compressed.model.eval(), _rows(inputs, count)) <= EXACT
        both = copy.deepcopy(zeroed).train(), copy.deepcopy(compressed.model).train()
        assert _gap(*both, _rows(inputs, count)) <= EXACT
