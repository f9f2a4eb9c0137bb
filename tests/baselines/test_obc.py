"""OBC on whole models: channels that the next layer can do without go, and their readers make up for them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.statistics import resettle_statistics_
from baselines.obc import Obc
from baselines.obc.groups import GroupSurgeon
from baselines.obc.weights import matrix_layers, prune_weights_
from baselines.prune_only import PruneOnly


def redundant_net() -> nn.Sequential:
    """Two layers, of which channels 1 and 4 are nearly copies of 0 and 3: they can go without loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for copied, source in ((1, 0), (4, 3)):
            first: Any = model[0]
            first.weight[copied] = 2 * first.weight[source]
            first.bias[copied] = 2 * first.bias[source]
    return model


def prepared(model: nn.Module, x: Tensor, sparsity: float) -> geta.Prepared:
    return geta.prepare(model, x, Obc(sparsity=sparsity).pruning_config())


def test_copies_go_first_and_the_output_stays() -> None:
    x = torch.randn(400, 5)
    model = redundant_net()
    wanted = model(x).detach()
    ready = prepared(model, x[:4], 1 / 3)
    dead = GroupSurgeon(ready, [x[:200], x[200:]], 1e-6).prune_(None)
    gone = set(torch.nonzero(dead).flatten().tolist())
    assert len(gone) == 2 and len(gone & {0, 1}) == 1 and len(gone & {3, 4}) == 1
    assert torch.allclose(model(x), wanted, atol=1e-3)
    assert ready.zero_groups() == 2


def test_the_first_score_is_the_error_that_refitting_the_reader_leaves() -> None:
    torch.manual_seed(1)
    x = torch.randn(500, 5)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    hidden = torch.relu(model[0](x)).detach().double()
    reader: Any = model[2]
    weight = reader.weight.detach().double()
    output = hidden @ weight.T
    scores = GroupSurgeon(prepared(model, x[:4], 0.5), [x], 1e-9).scores()
    for group in range(6):
        kept = [i for i in range(6) if i != group]
        refit = torch.linalg.lstsq(hidden[:, kept], output).solution
        error = (hidden[:, kept] @ refit - output).square().sum() / output.square().sum()
        assert float(scores[group]) == pytest.approx(float(error), rel=1e-3)


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12 * 36, 5),
    ).eval()  # fmt: skip


def smooth(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator).cumsum(-1).cumsum(-2) / 4


def test_it_beats_removing_the_smallest_groups_by_far() -> None:
    batches, held_out = [smooth(64, seed) for seed in range(3)], smooth(64, 9)
    wanted = conv_net()(held_out).detach()

    def error(model: nn.Module) -> float:
        return float(((model(held_out) - wanted).square().mean() / wanted.square().mean()).detach())

    ours = prepared(conv_net(), batches[0], 0.4)
    GroupSurgeon(ours, batches, 0.01).prune_(None)
    method = PruneOnly(sparsity=0.4, criterion="magnitude", warmup=0, joint=1, pruning_periods=1)
    theirs = method.prepare(conv_net(), batches[0], [])
    optimizer = method.optimizer(theirs, 1, torch.optim.SGD, lr=0.0)
    theirs.model.eval()(batches[0]).sum().backward()
    optimizer.step()
    assert ours.zero_groups() == theirs.zero_groups() == 8
    assert error(ours.model.eval()) < 0.2 * error(theirs.model.eval()), (error(ours.model), error(theirs.model))


@pytest.mark.parametrize("keywords", [{"divisible_by": 4}, {"min_kept": 6}])
def test_what_is_kept_obeys_the_rules(keywords: dict[str, Any]) -> None:
    batches = [smooth(32, 0)]
    method = Obc(sparsity=0.45, **keywords)
    ready = geta.prepare(conv_net(), batches[0], method.pruning_config())
    dead = GroupSurgeon(ready, batches, 0.01).prune_(None)
    kept = torch.bincount(ready.family[~dead]).tolist()
    if "divisible_by" in keywords:
        assert all(count % 4 == 0 for count in kept) and int(dead.sum()) == 8
    else:
        assert min(kept) >= 6


def test_groups_that_no_measurable_layer_reads_are_not_guessed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3)).eval()
    x = torch.randn(8, 1, 8, 8)
    ready = prepared(model, x, 0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(geta.PruningError, match="0 of 2 groups can be removed"):
        GroupSurgeon(ready, [x], 0.01).prune_(None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_single_weights_go_in_every_layer_and_beat_magnitude() -> None:
    batches, held_out = [smooth(64, seed) for seed in range(3)], smooth(64, 9)
    wanted = conv_net()(held_out).detach()
    ours, theirs = conv_net(), conv_net()
    prune_weights_(ours, batches, 0.6, 0.01)
    for module in matrix_layers(theirs):
        weight: Any = module.weight
        cut = weight.detach().abs().flatten().kthvalue(int(0.6 * weight.numel())).values
        weight.data[weight.abs() <= cut] = 0
    for module in matrix_layers(ours):
        weight = module.weight
        assert int((weight == 0).sum()) == int(0.6 * weight.numel())
    errors = [(model(held_out) - wanted).square().mean().item() for model in (ours, theirs)]
    assert errors[0] < 0.3 * errors[1], errors


@pytest.mark.parametrize("structure", ["groups", "weights"])
def test_a_finished_model_has_its_zeros_its_bits_and_nearly_its_output(structure: Any) -> None:
    batches = [smooth(64, seed) for seed in range(3)]
    method = Obc(sparsity=0.25, structure=structure, weight_bits=6, activation_bits=8, train=False)
    model = conv_net()
    resettle_statistics_(model, batches)
    wanted = model(batches[0]).detach()
    ready = method.prepare(model, batches[0], batches)
    compressed = method.finish(ready, batches)
    report = compressed.report
    assert report.weight_bits == 6 and report.activation_bits == 8
    assert report.removed == (5 if structure == "groups" else 0)
    zeros = sum(int((p == 0).sum()) for p in compressed.model.parameters() if p.dim() > 1)
    assert structure == "groups" or zeros >= 0.24 * sum(p.numel() for p in model.parameters() if p.dim() > 1)
    error = (compressed.model.eval()(batches[0]) - wanted).square().mean() / wanted.square().mean()
    assert error.item() < 0.1


def test_only_groups_move_the_bops() -> None:
    assert "sparsity" in Obc().knobs() and "sparsity" not in Obc(structure="weights").knobs()
