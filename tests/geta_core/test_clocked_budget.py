"""A latency budget: the search, what it is given to decide on, and, with ``--long``, a real clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import geta_core as geta
from geta_core import clocked_budget
from geta_core.budget import TOLERANCE
from geta_core.clocked_budget import AIM, _as_the_first_rank, _search, removed_within
from tests.benchmarks.budgets import clocked
from tests.geta_core.compressing import batch, build


def test_the_slowest_of_what_is_fast_enough_wins() -> None:
    """Time falls in steps of eight channels, and one step is slower than its neighbours."""

    def seconds(count: int) -> float:
        return 100 - 8 * (count // 8) + (5 if 40 <= count < 48 else 0)

    for limit in (33, 50, 61, 66, 90):
        best = max(value for value in map(seconds, range(91)) if value <= limit)
        assert seconds(_search(seconds, limit, 0, 90)) == best, limit
    assert _search(seconds, 1, 0, 90) == 90
    assert _search(seconds, 200, 7, 7) == 7


def test_the_choice_itself_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the share of the groups counts, but how long the model takes without those that are chosen."""
    prepared = geta.prepare(build("vgg7"), batch("vgg7"), geta.CompressionConfig())
    timed: list[int] = []

    def parameters_left(own: geta.Prepared, dead: torch.Tensor, size: int) -> float:
        timed.append(int(dead.sum()))
        assert size == 3
        return float(own.account.parameters(dead))

    monkeypatch.setattr(clocked_budget, "seconds_without", parameters_left)
    whole = prepared.account.parameters(prepared.none_dead())
    found, places = {}, torch.arange(prepared.num_prunable)
    for name, order in {"first": places, "last": -places}.items():

        def choose(count: int, order: torch.Tensor = order) -> torch.Tensor:
            return torch.zeros(len(order), dtype=torch.bool).index_fill(0, order.argsort()[:count], True)

        limit = 0.5 * whole
        found[name] = removed_within(prepared, geta.Latency(limit, batch=3), choose, 2, prepared.num_prunable - 1)
        assert (1 - TOLERANCE) * limit <= prepared.account.parameters(choose(found[name])) <= AIM * limit
    assert found["first"] > found["last"], "the late layers hold the parameters"
    assert min(timed) == 2


def _rank(rank: int, path: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(path, 2), rank=rank, world_size=2)
    try:
        assert _as_the_first_rank(lambda: 17 + rank) == 17

        def fails() -> int:
            raise geta.ConfigError([f"rank {rank} says no"])

        with pytest.raises(geta.GetaError, match="rank 0 says no"):
            _as_the_first_rank(fails)
    finally:
        dist.destroy_process_group()


def test_workers_follow_one_clock(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    other = torch.multiprocessing.get_context("spawn").Process(target=_rank, args=(1, path))
    other.start()
    try:
        _rank(0, path)
    finally:
        other.join(timeout=60)
        other.kill()
    assert other.exitcode == 0


def test_what_no_clock_shows_is_refused() -> None:
    with pytest.raises(geta.ConfigError, match="randomly pruned twins take"):
        geta.prepare(build("vgg7"), batch("vgg7"), geta.CompressionConfig(budget=geta.Latency(1e-9)))


def test_a_budget_that_the_whole_model_meets_removes_nothing() -> None:
    prepared = geta.prepare(build("vgg7"), batch("vgg7"), geta.CompressionConfig(budget=geta.Latency(60.0)))
    assert prepared.config.sparsity == 0


@pytest.mark.long
@pytest.mark.parametrize("net", ["resnet20", "vgg7"])
def test_a_run_ends_at_its_seconds(net: str) -> None:
    """Needs a quiet machine: the margin is that of the budget."""
    assert clocked(net, 0.5)["met"]
