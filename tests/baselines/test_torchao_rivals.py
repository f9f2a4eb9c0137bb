"""PAT and PARQ: what the library does reaches the model, and the finished model is what was trained."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import geta_core as geta
from baselines.torchao_rivals.parq import Parq, ParqOptimizer, quantized_parameters
from baselines.torchao_rivals.pat import Pat, PatOptimizer, even_shares, family_matrices
from geta_core.errors import ConfigError, ScheduleError
from orchestration.models import build_small, example_inputs
from tests.baselines.nets import STEPS, accuracy, batches, resumed, small_net, start, train


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "encoder"])
def test_family_matrices_hold_every_member_of_every_group_once(name: str) -> None:
    torch.manual_seed(0)
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=None)
    prepared = geta.prepare(build_small(name), example_inputs(name, small=True), config)
    matrices = family_matrices(prepared)
    assert sorted(int(g) for matrix in matrices for g in matrix.groups) == list(range(prepared.num_prunable))
    before = {key: value.clone() for key, value in prepared.model.state_dict().items()}
    for matrix in matrices:
        matrix.write()
    assert all(torch.equal(before[key], value) for key, value in prepared.model.state_dict().items())
    chosen = torch.zeros(prepared.num_prunable, dtype=torch.bool)
    for matrix in matrices:
        with torch.no_grad():
            matrix.parameter[::2] = 0
        matrix.write()
        chosen[matrix.groups[::2]] = True
    assert torch.equal(prepared.zero_mask() & chosen, chosen)
    changed = {key: value.clone() for key, value in prepared.model.state_dict().items()}
    prepared.model.load_state_dict(before)
    prepared.zero_([int(g) for g in torch.nonzero(chosen).flatten()])
    assert all(torch.equal(changed[key], value) for key, value in prepared.model.state_dict().items())


def test_even_shares() -> None:
    assert even_shares([8, 16], 12, 1) == [4, 8]
    assert even_shares([3, 3, 4], 5, 1) == [2, 1, 2]
    assert even_shares([2, 10], 11, 1) == [1, 9], "as far as each family can go"
    assert sum(even_shares([32, 64, 96], 100, 1)) == 100


def test_pats_lasso_has_no_number_of_groups_to_match() -> None:
    with pytest.raises(ConfigError, match=r"match_bops=0\.01 needs method\.prox=constraint"):
        Pat(prox="lasso", match_bops=0.01).matched(small_net(), batches(1)[0][0])
    assert "prox" not in Pat.SEARCH and "reg_lambda" not in Pat.SEARCH


@pytest.mark.needs("torchao")
def test_parq_ends_on_its_grid_and_finishing_changes_nothing() -> None:
    method = Parq(weight_bits=3)
    prepared, optimizer = start(method)
    assert isinstance(optimizer, ParqOptimizer)
    losses = train(prepared, optimizer, batches(STEPS))
    assert losses[-1] < losses[0]
    for weight in quantized_parameters(prepared.model):
        levels = optimizer.state[weight]["quants"]
        assert len(levels) == 2**3 - 1 and torch.isin(weight.detach(), levels).all()
    images = batches(1)[0][0]
    trained = prepared.model.eval()(images).detach()
    compressed = method.finish(prepared, [images])
    assert torch.allclose(compressed.model(images), trained, atol=1e-4)
    assert compressed.report.weight_bits == 3 and compressed.report.relative_bops == pytest.approx(3 / 32)
    assert accuracy(compressed.model) > 0.6


@pytest.mark.needs("torchao")
def test_parq_moves_weights_to_the_grid_little_by_little() -> None:
    prepared, optimizer = start(Parq(weight_bits=2, warmup=0.1, anneal=0.9))
    assert isinstance(optimizer, ParqOptimizer)
    data, shares, stages = batches(STEPS), [], []
    for number in range(0, STEPS, 10):
        train(prepared, optimizer, data[number : number + 10])
        weight = quantized_parameters(prepared.model)[1]
        levels = optimizer.state[weight]["quants"]
        shares.append(float(torch.isin(weight.detach(), levels).float().mean()))
        stages.append(optimizer.stage)
    assert shares[0] < shares[-2] < shares[-1] == 1.0
    assert stages[0] == "anneal" and stages[-1] == "hard"


@pytest.mark.needs("torchao")
@pytest.mark.parametrize("sparsity", [0.0, 0.35, 0.8])
def test_pat_removes_exactly_what_is_asked(sparsity: float) -> None:
    method = Pat(sparsity=sparsity)
    prepared, optimizer = start(method)
    losses = train(prepared, optimizer, batches(STEPS))
    assert losses[-1] < losses[0]
    assert prepared.zero_groups() == int(sparsity * prepared.num_prunable)
    report = method.finish(prepared, [images for images, _ in batches(2)]).report
    assert report.removed == int(sparsity * report.groups)
    assert report.weight_bits == 8 and report.activation_bits == 8


@pytest.mark.needs("torchao")
def test_groups_stay_zero_while_the_rest_heals() -> None:
    prepared, optimizer = start(Pat(sparsity=0.5, heal=0.5))
    data = batches(STEPS)
    train(prepared, optimizer, data[: STEPS // 2 + 1])
    dead, before = prepared.zero_mask(), {n: p.clone() for n, p in prepared.model.named_parameters()}
    assert int(dead.sum()) == prepared.num_prunable // 2
    train(prepared, optimizer, data[STEPS // 2 + 1 :])
    assert torch.equal(prepared.zero_mask(), dead)
    assert all(not torch.equal(before[name], p) for name, p in prepared.model.named_parameters())


@pytest.mark.needs("torchao")
def test_the_lasso_removes_more_with_more_weight() -> None:
    removed = []
    for weight in (1e-4, 0.3):
        prepared, optimizer = start(Pat(prox="lasso", reg_lambda=weight))
        assert isinstance(optimizer, PatOptimizer)
        train(prepared, optimizer, batches(STEPS))
        removed.append(prepared.zero_groups())
    assert removed[0] < removed[1]


@pytest.mark.needs("torchao")
@pytest.mark.parametrize("at", [3, 25, STEPS - 5])
@pytest.mark.parametrize("method", [Pat(), Parq(weight_bits=3)])
def test_a_resumed_run_is_the_same_bit_for_bit(method: Any, at: int) -> None:
    whole, again = resumed(method, at)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.needs("torchao")
def test_finishing_early_is_refused() -> None:
    method = Parq()
    prepared, _ = start(method)
    with pytest.raises(ScheduleError, match="not complete"):
        method.finish(prepared, [])


@pytest.mark.parametrize("method", [Pat(), Parq()])
def test_without_the_library_the_error_says_how_to_install_it(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"pip install 'torchao>=0\.18'"):
        method.prepare(small_net(), batches(1)[0][0], [])
