"""A budget finds sparsity and bit ranges before training, and the run ends at or just below it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import geta_core as geta
from geta_core.budget import TOLERANCE, Budget
from geta_core.planning import fitted
from tests.geta_core.compressing import batch, build

BUDGETS: dict[str, tuple[Budget, ...]] = {
    "resnet": (
        geta.Bops(0.01),
        geta.Bops(0.03),
        geta.Bops(0.1, activations=False),
        geta.Bytes(9_000),
        geta.Bytes(5_000),
    ),
    "vgg7": (
        geta.Bops(0.004),
        geta.Bops(0.02),
        geta.Bops(0.08, activations=False),
        geta.Bytes(14_000),
        geta.Bytes(7_000),
    ),
}
QUICK = {("resnet", 0), ("resnet", 3), ("vgg7", 1), ("vgg7", 4)}
CASES = [
    pytest.param(net, budget, marks=[] if (net, at) in QUICK else [pytest.mark.long])
    for net, budgets in BUDGETS.items()
    for at, budget in enumerate(budgets)
]


def trained(net: str, config: geta.CompressionConfig, steps: int = 3) -> tuple[geta.Prepared, geta.Compressed]:
    """A short run through every stage on random labels, with moves large enough to learn unequal bit widths."""
    torch.manual_seed(0)
    model, x = build(net).train(), batch(net, 16)
    prepared = geta.prepare(model, x, config)
    schedule = geta.Schedule(
        warmup=steps, projection=steps, joint=2 * steps, cooldown=steps, projection_periods=2, pruning_periods=2
    )
    optimizer = geta.QASSO(prepared, torch.optim.SGD, schedule=schedule, lr=0.05, lr_quant=1e-2)
    target = torch.randint(0, 5, (16,), generator=torch.Generator().manual_seed(1))
    for _ in range(schedule.total):
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared.model(x), target).backward()
        optimizer.step()
    return prepared, geta.finish(prepared)


@pytest.mark.parametrize(("net", "budget"), CASES)
def test_a_run_ends_at_its_budget(net: str, budget: Budget) -> None:
    prepared, compressed = trained(net, geta.CompressionConfig(budget=budget))
    spent = compressed.report.bytes if isinstance(budget, geta.Bytes) else compressed.report.relative_bops
    assert (1 - TOLERANCE) * budget.limit <= spent <= budget.limit
    config = prepared.config
    assert prepared.budget == budget
    assert (config.activation_bits is not None) == budget.activations
    for site in prepared.sites:
        bounds = config.weight_bits if site.kind == "weight" else config.activation_bits
        assert bounds is not None
        assert bounds[0] <= float(site.quantizer.bits().min())
        assert float(site.quantizer.bits().max()) <= bounds[1] + 1e-6


def test_only_allowed_widths_are_left() -> None:
    """With a budget and without one; the finished weights lie on grids of these widths."""
    for config in (
        geta.CompressionConfig(budget=geta.Bops(0.02), allowed_bits=(2, 4, 8, 16)),
        geta.CompressionConfig(weight_bits=(2, 8), activation_bits=(3, 9), allowed_bits=(2, 4, 8)),
    ):
        _, compressed = trained("vgg7", config)
        layers = [layer for layer in compressed.report.layers if layer.counted]
        assert {layer.weight_bits for layer in layers} <= set(config.allowed_bits or ())
        assert {layer.input_bits for layer in layers} <= set(config.allowed_bits or ())
        assert compressed.report.relative_bops <= 0.02 or config.budget is None


def test_allowed_widths_without_an_optimizer() -> None:
    prepared = geta.prepare(build("vgg7"), batch("vgg7"), geta.CompressionConfig(allowed_bits=(4, 8)))
    for site, bits in zip(prepared.sites, (2.0, 5.0, 5.9, 6.5, 12.0), strict=False):
        site.quantizer.set_bits_(bits)
    found = [float(weight.bits) for weight in geta.finish(prepared).weights.values()]
    assert found[:5] == [4, 4, 8, 8, 8]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"budget": geta.Bops(0.01), "sparsity": 0.3}, "state either a budget or sparsity, weight_bits"),
        ({"budget": geta.Bytes(1000), "weight_bits": (2, 4)}, "but got both"),
        ({"budget": geta.Bytes(1000), "activation_bits": (4, 8)}, "but got both"),
        ({"budget": 0.01}, "budget must be geta.Bops"),
        ({"budget": geta.Bops(0)}, "Bops must be above 0 and at most 1"),
        ({"budget": geta.Bops(1.5)}, "Bops must be above 0 and at most 1"),
        ({"budget": geta.Bytes(0)}, "whole number >= 1"),
        ({"budget": geta.Bytes(1.5)}, "whole number >= 1"),
        ({"budget": geta.Latency(-1.0)}, "seconds above 0"),
        ({"budget": geta.Latency(1.0, batch=0)}, "batch of Latency"),
        ({"allowed_bits": (1, 4)}, "allowed_bits must be whole numbers in"),
        ({"allowed_bits": ()}, "allowed_bits must be whole numbers in"),
        ({"allowed_bits": 4}, "allowed_bits must be whole numbers in"),
        ({"allowed_bits": (2,), "weight_bits": (4, 8)}, "must hold one of allowed_bits"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(geta.ConfigError, match=re.escape(words)):
        geta.CompressionConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [geta.Bops(1e-6), geta.Bytes(10), geta.Bytes(10**9)])
def test_what_cannot_be_met_is_refused_before_training(budget: Budget) -> None:
    model = build("vgg7")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(geta.ConfigError, match=r"cannot be met; .* the range is"):
        geta.prepare(model, batch("vgg7"), geta.CompressionConfig(budget=budget))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_budget_is_checked_at_the_end() -> None:
    """Without an optimizer nothing keeps it: bit widths are 16 then."""
    prepared = geta.prepare(build("vgg7"), batch("vgg7"), geta.CompressionConfig(budget=geta.Bops(0.01)))
    with pytest.raises(geta.PruningError, match="more than the budget"):
        geta.finish(prepared)
    geta.finish(prepared, early=True)


def test_fitting_against_trying_everything() -> None:
    """Three quantizers of unequal weight: the fit is allowed, and single changes cannot bring it closer."""
    shares = {"a": 1.0, "b": 7.0, "c": 20.0}
    choices = dict.fromkeys(shares, (2, 3, 4, 5, 6))

    def cost(bits: dict[str, torch.Tensor]) -> float:
        return sum(share * float(bits[name]) for name, share in shares.items())

    for limit in range(60, 170, 7):
        whole = {name: torch.tensor(4) for name in shares}
        found = fitted(cost, limit, whole, {name: torch.tensor(4.2) for name in shares}, choices)  # type: ignore[arg-type]
        assert cost(found) <= limit
        for name in shares:
            raised = {**found, name: found[name] + 1}
            assert int(found[name]) == 6 or cost(raised) > limit
    with pytest.raises(geta.PruningError, match="cannot be met"):
        fitted(cost, 50, whole, whole, choices)  # type: ignore[arg-type]
