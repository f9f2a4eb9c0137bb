"""The optimal brain surgeon against brute force and least squares, in float64 on layers small enough to enumerate."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from baselines.helpers.surgeon import (
    block_costs,
    choose_removals,
    downdate_,
    quantize_rows,
    removal_costs,
    remove,
    remove_block_,
)


def layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs with strongly correlated features, and their Gram matrix."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(columns, 50, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), x, x @ x.T / 50


def error(weight: Tensor, changed: Tensor, gram: Tensor) -> float:
    return float((((weight - changed) @ gram) * (weight - changed)).sum())


def least_squares(weight: Tensor, x: Tensor, support: Tensor) -> Tensor:
    """The best weights of one row with the others at zero, by a solver that knows nothing of Hessians."""
    result = torch.zeros_like(weight)
    result[support] = torch.linalg.lstsq(x[support].T, (weight @ x).unsqueeze(1)).solution.squeeze(1)
    return result


def test_one_removal_costs_what_refitting_the_rest_costs() -> None:
    weight, x, gram = layer(3, 6)
    inverse = gram.inverse()
    for row in weight:
        for p in range(6):
            support = torch.arange(6) != p
            refit = least_squares(row, x, support)
            assert error(row, refit, gram) == pytest.approx(float(row[p] ** 2 / inverse[p, p]), rel=1e-8)
            assert torch.allclose(remove(row[None], inverse, ~support[None])[0], refit, atol=1e-9)


def test_the_downdate_is_the_inverse_without_the_row_and_column() -> None:
    _, _, gram = layer(1, 7)
    inverse = gram.inverse().expand(7, -1, -1).clone()
    downdate_(inverse, torch.arange(7))
    for p in range(7):
        rest = torch.arange(7) != p
        assert torch.allclose(inverse[p][rest][:, rest], gram[rest][:, rest].inverse(), rtol=1e-8, atol=1e-10)
        assert not inverse[p][p].any() and not inverse[p][:, p].any()


@pytest.mark.parametrize("seed", range(4))
def test_the_first_removal_is_the_brute_force_optimum(seed: int) -> None:
    weight, x, gram = layer(4, 6, seed)
    order, costs = removal_costs(weight, gram.inverse())
    for row, first, cost in zip(weight, order[:, 0], costs[:, 0], strict=True):
        every = [error(row, least_squares(row, x, torch.arange(6) != p), gram) for p in range(6)]
        assert int(first) == min(range(6), key=lambda p: every[p])
        assert float(cost) == pytest.approx(min(every), rel=1e-8)


def test_costs_of_the_steps_add_up_to_the_error_of_their_result() -> None:
    weight, x, gram = layer(3, 8, 5)
    order, costs = removal_costs(weight, gram.inverse())
    for row, indices, cost in zip(weight, order, costs, strict=True):
        support = torch.ones(8, dtype=torch.bool)
        support[indices[:5]] = False
        assert error(row, least_squares(row, x, support), gram) == pytest.approx(float(cost[:5].sum()), rel=1e-7)


def test_it_beats_magnitude_and_is_near_the_best_of_all_subsets() -> None:
    totals = {"obs": 0.0, "magnitude": 0.0, "magnitude, refitted": 0.0, "best": 0.0}
    for seed in range(10):
        weight, x, gram = layer(2, 8, seed)
        inverse = gram.inverse()
        order, _ = removal_costs(weight, inverse)
        for row, indices in zip(weight, order, strict=True):
            chosen = torch.zeros(8, dtype=torch.bool)
            chosen[indices[:4]] = True
            small = torch.zeros(8, dtype=torch.bool)
            small[row.abs().argsort()[:4]] = True
            totals["obs"] += error(row, remove(row[None], inverse, chosen[None])[0], gram)
            totals["magnitude"] += error(row, row.masked_fill(small, 0), gram)
            totals["magnitude, refitted"] += error(row, least_squares(row, x, ~small), gram)
            every = (torch.tensor([p in kept for p in range(8)]) for kept in itertools.combinations(range(8), 4))
            totals["best"] += min(error(row, least_squares(row, x, support), gram) for support in every)
    assert totals["obs"] < 0.4 * totals["magnitude"], totals
    assert totals["obs"] < 0.85 * totals["magnitude, refitted"], totals
    assert totals["best"] <= totals["obs"] * (1 + 1e-9) and totals["obs"] < 1.3 * totals["best"], totals


def test_rows_share_a_budget_by_cost() -> None:
    costs = torch.tensor([[1.0, 2.0, 30.0], [5.0, 0.1, 0.1], [40.0, 1.0, 1.0]])
    assert choose_removals(costs, 0).tolist() == [0, 0, 0]
    assert choose_removals(costs, 2).tolist() == [2, 0, 0]
    assert choose_removals(costs, 5).tolist() == [2, 3, 0], "in a row the order is fixed, however cheap what follows"
    assert choose_removals(costs, 9).tolist() == [3, 3, 3]


def test_a_block_is_removed_as_its_weights_one_by_one() -> None:
    weight, _, gram = layer(5, 9, 3)
    inverse, p = gram.inverse(), torch.tensor([1, 4, 5])
    chosen = torch.zeros(5, 9, dtype=torch.bool)
    chosen[:, p] = True
    wanted = remove(weight, inverse, chosen)
    cost, other = block_costs(weight, inverse, torch.stack([p, torch.tensor([0, 2, 3])]))
    changed, rest = weight.clone(), inverse.clone()
    remove_block_(changed, rest, p)
    assert torch.allclose(changed, wanted, atol=1e-10)
    assert float(cost) == pytest.approx(error(weight, wanted, gram), rel=1e-8)
    assert float(other) != pytest.approx(float(cost))
    assert block_costs(changed, rest, p[None]).tolist() == [0.0], "what has gone costs nothing more"
    kept = torch.tensor([i for i in range(9) if i not in p.tolist()])
    assert torch.allclose(rest[kept][:, kept], gram[kept][:, kept].inverse(), rtol=1e-8, atol=1e-10)


def test_quantizing_beats_rounding_to_nearest_and_stays_on_the_grid() -> None:
    better = 0.0
    for seed in range(5):
        weight, _, gram = layer(6, 10, seed)
        step = weight.abs().amax(1, keepdim=True) / 3
        levels = quantize_rows(weight, gram.inverse(), step, 3)
        assert torch.equal(levels, levels.round()) and float(levels.abs().max()) <= 3
        nearest = (weight / step).round().clamp(-3, 3)
        better += error(weight, levels * step, gram) / error(weight, nearest * step, gram)
    assert better / 5 < 0.7, better / 5


def test_the_last_weight_is_rounded_to_nearest_where_inputs_are_independent() -> None:
    """With H = I nothing can make up for anything: every weight goes to its nearest level."""
    weight, _, _ = layer(4, 7)
    step = torch.full((4, 1), 0.3, dtype=torch.float64)
    levels = quantize_rows(weight, torch.eye(7, dtype=torch.float64), step, 100)
    assert torch.equal(levels, (weight / step).round())


def test_what_was_pruned_stays_zero_and_outliers_are_cut_off_first() -> None:
    weight, _, gram = layer(4, 8, 1)
    weight[:, 2], weight[1, 5] = 0, 0
    weight[0, 0] = 50.0
    step = torch.full((4, 1), 0.5, dtype=torch.float64)
    levels = quantize_rows(weight, gram.inverse(), step, 7)
    assert not levels[:, 2].any() and levels[1, 5] == 0
    assert levels[0, 0] == 7 and float(levels.abs().max()) <= 7
    cut = weight.clone()
    cut[0, 0] = 3.5
    assert error(weight[:1], levels[:1] * 0.5, gram) < error(weight[:1], (cut / 0.5).round()[:1] * 0.5, gram)


def test_rows_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, gram = layer(7, 6)
    inverse, step = gram.inverse(), torch.full((7, 1), 0.4, dtype=torch.float64)
    whole = quantize_rows(weight, inverse, step, 5), removal_costs(weight, inverse)[0]
    monkeypatch.setattr("baselines.helpers.surgeon.ELEMENTS", 100)
    parts = quantize_rows(weight, inverse, step, 5), removal_costs(weight, inverse)[0]
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])
