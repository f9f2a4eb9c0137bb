"""What is chosen: exactly as many as asked, the least salient, within what each family can lose."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geta_core.qasso.selection import Selector

FAMILIES = st.lists(st.integers(1, 12), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32 - 1)


def setting(sizes: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Return the family of each group, mixed, and scores with ties."""
    generator = torch.Generator().manual_seed(seed)
    family = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    family = family[torch.randperm(family.numel(), generator=generator)]
    return family, torch.randint(0, 8, (family.numel(),), generator=generator).double()


def run(selector: Selector, scores: list[Tensor]) -> list[Tensor]:
    pruned = torch.zeros(selector.num_groups, dtype=torch.bool)
    chosen = []
    for period, score in enumerate(scores):
        chosen.append(selector.choose(score, pruned, selector.share(period, len(scores))))
        assert not bool((chosen[-1] & pruned).any()), "pruned before"
        pruned = pruned | chosen[-1]
    return chosen


@given(FAMILIES, st.floats(0, 0.99), st.integers(1, 3), st.integers(1, 5), SEEDS)
def test_exactly_the_target_with_min_kept(
    sizes: list[int], sparsity: float, kept: int, periods: int, seed: int
) -> None:
    family, score = setting(sizes, seed)
    selector = Selector(family, sparsity=sparsity, min_kept=kept, divisible_by=1)
    assert selector.asked == int(sparsity * sum(sizes))
    assert selector.target == min(selector.asked, sum(max(0, size - kept) for size in sizes))
    chosen = run(selector, [score.roll(period) for period in range(periods)])
    counts = [int(flags.sum()) for flags in chosen]
    each = selector.target // periods
    assert counts == [each] * (periods - 1) + [selector.target - each * (periods - 1)]
    left = torch.bincount(family[~torch.stack(chosen).any(0)], minlength=len(sizes)).tolist()
    assert all(count >= min(kept, size) for count, size in zip(left, sizes, strict=True))


@given(FAMILIES, st.floats(0, 0.99), SEEDS)
def test_the_lowest_scores_go_and_ties_keep_the_order(sizes: list[int], sparsity: float, seed: int) -> None:
    family, score = setting(sizes, seed)
    selector = Selector(family, sparsity=sparsity, min_kept=1, divisible_by=1)
    (chosen,) = run(selector, [score])
    # A plain loop: lowest first, skipping families that are down to one group. Ties: lower families, then lower groups.
    left, expected = list(sizes), []
    for group in sorted(range(len(score)), key=lambda g: (float(score[g]), int(family[g]), g)):
        if len(expected) < selector.target and left[int(family[group])] > 1:
            left[int(family[group])] -= 1
            expected.append(group)
    assert chosen.nonzero().flatten().tolist() == sorted(expected)


@given(FAMILIES, st.floats(0, 0.99), st.integers(1, 3), st.integers(2, 5), st.integers(1, 4), SEEDS)
def test_divisible(sizes: list[int], sparsity: float, kept: int, divisor: int, periods: int, seed: int) -> None:
    family, score = setting(sizes, seed)
    selector = Selector(family, sparsity=sparsity, min_kept=kept, divisible_by=divisor)
    chosen = torch.stack(run(selector, [score.roll(period) for period in range(periods)])).any(0)
    assert selector.target - divisor < int(chosen.sum()) <= selector.target <= selector.asked
    left = torch.bincount(family[~chosen], minlength=len(sizes)).tolist()
    for count, size in zip(left, sizes, strict=True):
        assert count == size or (count % divisor == 0 and count >= kept)


@given(FAMILIES, SEEDS)
def test_order_of_numbering_does_not_matter(sizes: list[int], seed: int) -> None:
    family, _ = setting(sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(family.numel(), generator=generator)
    mixed = torch.randperm(family.numel(), generator=generator)
    plain = run(Selector(family, sparsity=0.5, min_kept=1, divisible_by=1), [score, 1 - score])
    moved = run(Selector(family[mixed], sparsity=0.5, min_kept=1, divisible_by=1), [score[mixed], 1 - score[mixed]])
    for ours, theirs in zip(plain, moved, strict=True):
        assert torch.equal(ours[mixed], theirs)


def test_a_budget_that_blocks_cannot_use_is_carried_to_the_next_period() -> None:
    family = torch.zeros(16, dtype=torch.long)
    selector = Selector(family, sparsity=0.5, min_kept=1, divisible_by=4)
    chosen = run(selector, [torch.arange(16.0)] * 3)
    assert [int(flags.sum()) for flags in chosen] == [0, 4, 4]
    assert torch.stack(chosen).any(0).nonzero().flatten().tolist() == list(range(8))


def test_nothing_to_prune() -> None:
    selector = Selector(torch.zeros(0, dtype=torch.long), sparsity=0.5, min_kept=1, divisible_by=1)
    assert selector.target == 0
