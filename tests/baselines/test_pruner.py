"""Groups that go while a model trains: how many, which, and how they fall, against formulas written out here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.gauge import Gauge
from baselines.helpers.pruner import Budget, GroupPruner
from baselines.helpers.scores import GroupScores
from baselines.helpers.sequence import SequenceOptimizer
from baselines.prune_only import PruneOnly
from geta_core.qasso.schedule import Schedule


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 10, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(10 * 36, 4),
    )  # fmt: skip


def prepared(**keywords: Any) -> geta.Prepared:
    torch.manual_seed(0)
    config = geta.CompressionConfig(weight_bits=None, activation_bits=None, **keywords)
    return geta.prepare(net(), torch.randn(4, 1, 8, 8), config)


def backward(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(8, 1, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)
    nn.functional.cross_entropy(model(images), labels).backward()


def members(model: nn.Module, channel: int) -> list[tuple[Tensor, Tensor]]:
    """Parameters and gradients of a group: of the first convolution (with its norm) or, from 6 on, of the second."""
    modules: list[Any] = [model[0], model[1]] if channel < 6 else [model[3]]  # type: ignore[index]
    index = channel if channel < 6 else channel - 6
    tensors = [p for module in modules for p in (module.weight, module.bias)]
    return [(p.detach()[index].double().flatten(), p.grad[index].double().flatten()) for p in tensors]


def test_the_order_of_the_groups_is_what_these_tests_take_it_for() -> None:
    model = prepared(sparsity=0.5)
    assert model.num_prunable == 16
    model.zero_([7])
    assert not model.model[3].weight[1].any() and model.model[3].weight[0].any()  # type: ignore[index]


def reference(model: nn.Module, criterion: str) -> list[float]:
    found = []
    for channel in range(16):
        pairs = members(model, channel)
        x, g = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        found.append(float(x.square().mean().sqrt() if criterion == "magnitude" else (x * g).sum().square()))
    return found


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_scores_are_those_of_the_formulas(criterion: Any) -> None:
    model = prepared(sparsity=0.5)
    scores = GroupScores(model, criterion)
    total = [0.0] * 16
    for seed in range(3):
        model.model.zero_grad()
        backward(model.model, seed)
        scores.note()
        total = [a + b for a, b in zip(total, reference(model.model, criterion), strict=True)]
    wanted = torch.tensor(total).double() / (3 if criterion == "magnitude" else 1)
    assert torch.allclose(scores.score(~model.none_dead()), wanted, rtol=1e-5)
    if criterion == "taylor":
        assert not scores.score(~model.none_dead()).any(), "the next average starts anew"


def test_hessos_scores_are_its_five_criteria() -> None:
    model = prepared(sparsity=0.5)
    backward(model.model)
    rows = []
    for channel in range(16):
        x, g = (torch.cat(parts) for parts in zip(*members(model.model, channel), strict=True))
        inner = float(x @ g)
        rows.append(
            [
                float(x.norm()),
                float(x.norm()) / len(x),
                inner / float(x.norm() * g.norm()) + 1,
                abs(inner),
                inner**2 / 2,
            ]
        )
    criteria = torch.tensor(rows).double()
    wanted = (0.2 * criteria / criteria.norm(dim=0)).sum(1)
    assert torch.allclose(GroupScores(model, "hesso").score(~model.none_dead()), wanted, rtol=1e-4)


def test_random_scores_differ_with_the_seed_and_not_with_time() -> None:
    model, every = prepared(sparsity=0.5), torch.ones(16, dtype=torch.bool)
    torch.manual_seed(3)
    first = GroupScores(model, "random")
    drawn = first.score(every)
    assert torch.equal(drawn, first.score(every)) and len(drawn.unique()) == 16
    torch.manual_seed(4)
    other = GroupScores(model, "random")
    assert not torch.equal(drawn, other.score(every))
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.score(every), drawn)


@pytest.mark.parametrize("criterion", ["hesso", "magnitude", "taylor", "random"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8])
def test_exactly_k_groups_are_zero(criterion: Any, sparsity: float) -> None:
    torch.manual_seed(0)
    method = PruneOnly(sparsity=sparsity, criterion=criterion, pruning_periods=3, warmup=2, joint=7)
    model = method.prepare(net(), torch.randn(4, 1, 8, 8), [])
    optimizer = method.optimizer(model, 12, torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    for step in range(12):
        with pytest.raises(geta.ScheduleError):
            method.finish(model, [])
        backward(model.model, step)
        optimizer.step()
        optimizer.zero_grad()
    assert model.zero_groups() == int(sparsity * 16)
    report = method.finish(model, []).report
    assert report.removed == int(sparsity * 16) and report.weight_bits == 32


def test_redundant_groups_fall_in_equal_parts_and_stay_zero() -> None:
    """With no gradient what is left of a group after step k of L is (L - k - 1) / L of it."""
    model = prepared(sparsity=0.5)
    pruner = GroupPruner(model, "magnitude", Schedule(warmup=1, projection=0, joint=5, cooldown=2, pruning_periods=1))
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    optimizer = SequenceOptimizer(model, torch.optim.SGD, stages=[("all", 8)], pruner=pruner, lr=0.1, momentum=0.9)
    for step in range(8):
        for parameter in model.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        left = 1.0 if step < 1 else max(0.0, (5 - step) / 5)
        chosen = sum(
            torch.allclose(p.detach()[i], left * before[name][i], atol=1e-7)
            and (left == 1 or bool(before[name][i].any()))
            for name, p in model.model.named_parameters()
            for i in range(len(p))
            if name in ("0.weight", "3.weight")
        )
        assert chosen == (16 if step < 1 else 8), step
    assert model.zero_groups() == 8 and int(pruner.pruned.sum()) == 8


def test_the_lowest_scores_go_first() -> None:
    model = prepared(sparsity=0.5)
    wanted = torch.tensor(reference_magnitude(model.model)).argsort()[:8]
    schedule = Schedule(warmup=0, projection=0, joint=2, cooldown=0, pruning_periods=1)
    pruner = GroupPruner(model, "magnitude", schedule)
    for step in range(2):
        pruner.before_step(step)
        pruner.after_step(step)
    assert set(torch.nonzero(pruner.pruned).flatten().tolist()) == set(wanted.tolist())


def reference_magnitude(model: nn.Module) -> list[float]:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return reference(model, "magnitude")


@pytest.mark.parametrize("target", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_a_budget_is_met_whichever_groups_go(criterion: Any, target: float) -> None:
    model = prepared(sparsity=0.0)
    gauge = Gauge.of(model)
    budget = Budget(lambda dead: gauge.relative_bops(dead, None, None), target)
    schedule = Schedule(warmup=0, projection=0, joint=6, cooldown=0, pruning_periods=3)
    pruner = GroupPruner(model, criterion, schedule, budget)
    for step in range(6):
        pruner.before_step(step)
        pruner.after_step(step)
    dead = pruner.pruned
    reached = gauge.relative_bops(dead, None, None)
    largest_step = max(
        abs(gauge.relative_bops(dead ^ (torch.arange(16) == g), None, None) - reached) for g in range(16)
    )
    assert abs(reached - target) <= largest_step / 2 + 1e-9, (reached, target)
    assert model.status()["relative_bops"] == pytest.approx(reached)


def test_the_gauge_counts_what_a_finished_model_costs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=(5, 5), activation_bits=(6, 6), initial_bits=6)
    quantized = geta.prepare(net(), x, config)
    gauge = Gauge.of(prepared(sparsity=0.0))
    for groups in ([], [0, 7, 8], list(range(5))):
        model = geta.prepare(net(), x, config)
        model.zero_(groups)
        dead = quantized.none_dead()
        dead[groups] = True
        for site in model.sites:
            site.quantizer.set_bits_(5 if site.kind == "weight" else 6)
        assert gauge.relative_bops(dead, 5, 6) == pytest.approx(geta.finish(model).report.relative_bops, rel=1e-9)
    assert gauge.relative_bops(quantized.none_dead(), None, None) == pytest.approx(1.0)
    assert math.isclose(gauge.relative_bops(quantized.none_dead(), 8, None), 0.25)
