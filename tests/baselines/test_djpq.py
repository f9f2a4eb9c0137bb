"""DJPQ and DJPQ-restrict: what each promises, counted from the finished model."""

from __future__ import annotations

import math

import pytest
import torch

from baselines.djpq import POWERS_OF_TWO, Djpq, DjpqOptimizer, DjpqRestrict
from geta_core.errors import ConfigError, ScheduleError
from tests.baselines.nets import STEPS, accuracy, batches, resumed, start, train

QUICK = {"lr_gates": 0.1, "lr_quant": 0.04, "information": 3e-3}


@pytest.mark.parametrize("method", [Djpq(match_bops=0.03, **QUICK), DjpqRestrict(match_bops=0.03, **QUICK)])
def test_it_learns_and_ends_at_the_asked_bops(method: Djpq) -> None:
    prepared, optimizer = start(method)
    train(prepared, optimizer, batches(STEPS))
    compressed = method.finish(prepared, [])
    assert abs(compressed.report.relative_bops / 0.03 - 1) < 0.1
    assert compressed.report.removed > 0
    assert accuracy(compressed.model) > 0.6
    widths = {int(bits) for weight in compressed.weights.values() for bits in weight.bits.flatten()}
    assert widths <= set(method.widths() or range(2, 17))
    inputs = {row.input_bits for row in compressed.report.layers}
    assert inputs <= set(map(float, method.widths() or range(2, 17)))


def test_the_restricted_method_has_powers_of_two_in_every_step() -> None:
    method = DjpqRestrict(bops_weight=1.0, lr_gates=0.1, lr_quant=0.2)
    prepared, optimizer = start(method, 12)
    seen = set()
    for batch in batches(12):
        train(prepared, optimizer, [batch])
        bits = [float(site.quantizer.bits()) for site in prepared.sites]
        seen |= {round(each) for each in bits}
        assert all(each in POWERS_OF_TWO for each in bits)
    assert len(seen) > 1, "the widths move"


def test_higher_prices_cost_less() -> None:
    """Without a target the weights in the loss decide: more beta, fewer bits; more gamma, fewer groups."""
    reports = []
    for beta, gamma in ((0.01, 1e-5), (1.0, 1e-5), (0.01, 0.1)):
        method = Djpq(bops_weight=beta, information=gamma, lr_gates=0.3, lr_quant=0.02)
        prepared, optimizer = start(method)
        train(prepared, optimizer, batches(STEPS))
        reports.append(method.finish(prepared, []).report)
    plain, bits, groups = reports
    assert bits.weight_bits < plain.weight_bits and bits.relative_bops < plain.relative_bops
    assert groups.removed > plain.removed


def test_the_penalty_is_the_formula() -> None:
    method = Djpq(information=0.3, bops_weight=0.7, alpha_threshold=2.0, temperature=0.5)
    prepared, optimizer = start(method)
    assert isinstance(optimizer, DjpqOptimizer)
    with torch.no_grad():
        optimizer.gates.mu.uniform_(-1, 1)
        optimizer.gates.log_variance.uniform_(-2, 1)
    mu, log_variance = optimizer.gates.mu.detach(), optimizer.gates.log_variance.detach()
    alpha = mu**2 / log_variance.exp()
    keep = 1 / (1 + ((alpha / 2).log() / -0.5).exp())
    bits = torch.tensor([float(site.quantizer.bits()) for site in prepared.sites])
    expected = 0.3 * 0.5 * (1 + alpha).log().sum() + 0.7 * optimizer.cost.relative_bops(keep, bits).log()
    assert float(optimizer.penalty().detach()) == pytest.approx(float(expected), rel=1e-4)


def test_above_its_target_only_bops_are_charged() -> None:
    method = Djpq(match_bops=0.5, information=0.0)
    _, optimizer = start(method)
    assert isinstance(optimizer, DjpqOptimizer)
    assert float(optimizer.penalty().detach()) == 0.0
    _, tight = start(Djpq(match_bops=0.001, information=0.0, bops_weight=1.0))
    assert isinstance(tight, DjpqOptimizer)
    keep, bits = torch.sigmoid(tight.gates.log_alpha()), tight.grids.site_bits(tight.learned_bits())
    now = float(tight.cost.relative_bops(keep, bits).detach())
    assert float(tight.penalty().detach()) == pytest.approx(math.log(now / 0.001), rel=1e-4)


@pytest.mark.parametrize("at", [7, STEPS - 5])
@pytest.mark.parametrize("kind", [Djpq, DjpqRestrict])
def test_a_resumed_run_is_the_same_bit_for_bit(kind: type[Djpq], at: int) -> None:
    whole, again = resumed(kind(match_bops=0.02, **QUICK), at)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_groups_that_are_removed_stay_zero() -> None:
    method = Djpq(match_bops=0.01, learn=0.5, **QUICK)
    prepared, optimizer = start(method)
    train(prepared, optimizer, batches(STEPS)[: STEPS // 2])
    dead = prepared.zero_mask()
    assert dead.any()
    for batch in batches(STEPS)[STEPS // 2 :]:
        train(prepared, optimizer, [batch])
        assert torch.equal(prepared.zero_mask(), dead)
    assert torch.equal(method.finish(prepared, []).report.removed * torch.ones(()), dead.sum().float())


def test_finishing_early_and_foreign_states_are_refused() -> None:
    method = Djpq()
    prepared, optimizer = start(method)
    with pytest.raises(ScheduleError, match="it has no 'method'"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    _, other = start(method, STEPS // 2)
    with pytest.raises(ScheduleError, match="resume with the settings"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ScheduleError, match="schedule is not complete"):
        method.finish(prepared, [])


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"weight_bits must be two of \(2, 4, 8, 16\)"):
        DjpqRestrict(weight_bits=(3, 8))
    with pytest.raises(ConfigError, match="did you mean"):
        Djpq(weight_bits=(8, 4))
