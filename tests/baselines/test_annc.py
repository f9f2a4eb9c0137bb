"""ANNC: the projection is a minimiser (by brute force), ADMM's residuals fall, the budget holds."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from baselines.annc import Annc, AnncOptimizer, Choice, Grid, best_within, project, quantized
from baselines.helpers.masks import first_step
from geta_core.errors import ConfigError
from tests.baselines.nets import STEPS, accuracy, batches, resumed, small_net, start, train

WIDTHS = (2, 3, 4)


def small_layers(seed: int) -> tuple[list[Tensor], list[Grid]]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(4, dtype=torch.float64, generator=generator), torch.randn(3, generator=generator).double()]
    return weights, [{b: 0.8 * first_step(w.abs(), b) for b in WIDTHS} for w in weights]


def squared_error(weights: list[Tensor], choice: Choice) -> float:
    return sum(float((w - v).square().sum()) for w, v in zip(weights, choice.values(weights), strict=True))


def by_force(weights: list[Tensor], grids: list[Grid], budget: float) -> float:
    """Least squared error over all widths and all supports of at most so many bits."""
    best = float("inf")
    for widths in itertools.product(WIDTHS, repeat=len(weights)):
        layers = zip(weights, grids, widths, strict=True)
        kept = [((w - quantized(w, grid[b], b)).square(), w.square()) for w, grid, b in layers]
        for bits in itertools.product([False, True], repeat=sum(w.numel() for w in weights)):
            supports = torch.split(torch.tensor(bits), [w.numel() for w in weights])
            size = sum(int(s.sum()) * b for s, b in zip(supports, widths, strict=True))
            if size <= budget:
                error = sum(float(torch.where(s, q, z).sum()) for s, (q, z) in zip(supports, kept, strict=True))
                best = min(best, error)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_the_projection_is_the_minimiser_at_its_own_size(seed: int) -> None:
    """No choice of the same or a smaller size is nearer; for budgets between sizes the gap is bounded by one gain."""
    weights, grids = small_layers(seed)
    largest = max(float(w.square().max()) for w in weights)
    for budget in (0, 3, 7, 12, 20, 28):
        choice = best_within(weights, grids, budget)
        size = float(choice.size())
        assert size <= budget
        found = squared_error(weights, choice)
        assert found <= by_force(weights, grids, budget) + largest + 1e-12
        priced = by_force(weights, grids, size)
        if is_reached_by_a_price(weights, grids, choice):
            assert found == pytest.approx(priced, abs=1e-9)


def is_reached_by_a_price(weights: list[Tensor], grids: list[Grid], choice: Choice) -> bool:
    """Whether some price of a bit makes exactly this choice the best without any budget."""
    for price in torch.linspace(0, 4, 4001).tolist():
        total, widths = 0.0, []
        for w, grid in zip(weights, grids, strict=True):
            costs = {
                b: float(torch.minimum(w.square(), (w - quantized(w, grid[b], b)).square() + price * b).sum())
                for b in WIDTHS
            }
            widths.append(min(costs, key=lambda b: costs[b]))
            total += costs[widths[-1]]
        own = squared_error(weights, choice) + price * float(choice.size())
        if own <= total + 1e-9:
            return True
    return False


def test_some_choices_are_reached_by_a_price() -> None:
    """The case that the exact test needs occurs."""
    reached = 0
    for seed in range(3):
        weights, grids = small_layers(seed)
        reached += sum(is_reached_by_a_price(weights, grids, best_within(weights, grids, b)) for b in (3, 7, 12, 20))
    assert reached >= 4


def test_refitting_grids_does_not_leave_the_budget() -> None:
    weights = [torch.randn(500, generator=torch.Generator().manual_seed(1)) * scale for scale in (1.0, 0.1)]
    for share in (0.02, 0.1, 0.2):
        budget = share * 32 * 1000
        choice = project(weights, [range(2, 9)] * 2, budget)
        assert 0.95 * budget <= float(choice.size()) <= budget
        assert squared_error(weights, choice) < sum(float(w.square().sum()) for w in weights)


def test_the_residual_falls_on_least_squares() -> None:
    """min |A W - y|^2 / 2 under the budget, by the method's three steps with exact minimization over W.

    With rho at least twice the largest curvature ADMM converges although the set is not convex (arXiv:1511.06324).
    """
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(120, 60, dtype=torch.float64, generator=generator)
    goal = matrix @ torch.randn(60, dtype=torch.float64, generator=generator)
    curvature, right = matrix.T @ matrix, matrix.T @ goal
    rho, budget = 2 * float(torch.linalg.eigvalsh(curvature)[-1]), 0.08 * 32 * 60
    w = torch.linalg.solve(curvature, right)
    u, losses, gaps = torch.zeros_like(w), [], []
    for _ in range(80):
        (v,) = project([w + u], [range(2, 9)], budget).values([w + u])
        u = u + w - v
        w = torch.linalg.solve(curvature + rho * torch.eye(60).double(), right + rho * (v - u))
        gaps.append(float((w - v).norm() / w.norm()))
        losses.append(float((matrix @ v - goal).square().sum()))
    assert gaps[-1] < 0.1 * gaps[0]
    assert losses[-1] < losses[0], "and V is better than the first, one-shot projection"


def test_the_residual_falls_in_training() -> None:
    method = Annc(size_budget=0.05, learn=0.9, rho=0.2, period=0.05)
    prepared, optimizer = start(method)
    assert isinstance(optimizer, AnncOptimizer)
    data, gaps = batches(STEPS), []
    for number in range(0, 54, 6):
        train(prepared, optimizer, data[number : number + 6])
        gaps.append(float(optimizer.residual()))
    # The first is that before any projection.
    assert all(later < 1.02 * earlier for earlier, later in itertools.pairwise(gaps[1:])), gaps
    assert gaps[-1] < 0.9 * gaps[1], gaps


@pytest.mark.parametrize("budget", [0.04, 0.1])
def test_it_learns_within_its_budget(budget: float) -> None:
    method = Annc(size_budget=budget)
    prepared, optimizer = start(method)
    train(prepared, optimizer, batches(STEPS))
    compressed = method.finish(prepared, [])
    rows = compressed.report.layers
    stored = sum(row.weights * row.density * row.weight_bits for row in rows)
    elements = sum(row.weights for row in rows)
    assert 0.9 * budget <= stored / (32 * elements) <= budget
    assert accuracy(compressed.model) > 0.6
    assert all(2 <= row.weight_bits <= 8 for row in rows)


def test_bops_can_be_asked_for() -> None:
    method = Annc(size_budget=0.1, activation_bits=8, match_bops=0.03)
    prepared, optimizer = start(method)
    train(prepared, optimizer, batches(STEPS))
    assert abs(method.finish(prepared, []).report.relative_bops / 0.03 - 1) < 0.1


@pytest.mark.parametrize(("target", "inputs"), [(0.03, 8), (0.0105, 5), (0.004, 2)])
def test_inputs_are_as_wide_as_the_target_allows(target: float, inputs: int) -> None:
    method = Annc(activation_bits=8, match_bops=target).matched(small_net(), batches(1)[0][0])
    assert method.activation_bits == inputs
    # All layers of this net are quantized: 2 bits of weights are the least.
    assert 2 * inputs / 1024 <= 1.1 * target < 2 * (inputs + 1) / 1024 or inputs == 8


def test_a_target_below_all_widths_is_refused() -> None:
    for asked, least in ((8, "0.003906"), (None, "0.0625")):
        with pytest.raises(ConfigError, match=f"the range is {least} to "):
            Annc(activation_bits=asked, match_bops=0.001).matched(small_net(), batches(1)[0][0])


@pytest.mark.parametrize("at", [20, STEPS - 5])
def test_a_resumed_run_is_the_same_bit_for_bit(at: int) -> None:
    whole, again = resumed(Annc(size_budget=0.05), at)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
