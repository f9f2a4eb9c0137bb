"""The parts of the gated methods: gates on channels, the differentiable cost, grids in the logarithm, targets."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.djpq import NormalGates
from baselines.helpers.channels import gated_slots
from baselines.helpers.grids import Grids
from baselines.helpers.soft_cost import SoftCost
from baselines.helpers.targets import Plan, nearest, removable
from orchestration.models import build_small, example_inputs
from tests.baselines.nets import batches, small_net


def prepared_net(**keywords: object) -> geta.Prepared:
    torch.manual_seed(0)
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=(2, 16), activation_bits=(2, 16), **keywords)  # type: ignore[arg-type]
    return geta.prepare(small_net().train(), batches(1)[0][0], config)


def test_gates_leave_out_what_a_batch_norm_rescales() -> None:
    prepared = prepared_net()
    gated = {slot.name for slot in gated_slots(prepared)}
    assert {slot.name for slot in prepared.slots} == {"0.weight", "1.weight", "1.bias", "4.weight", "4.bias"}
    assert gated == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_a_gate_multiplies_its_channel() -> None:
    """Without quantizers the output after gates equals that with the channels themselves multiplied."""
    torch.manual_seed(0)
    plain = small_net().train()
    model = copy.deepcopy(plain)
    images = batches(1)[0][0]
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=None)
    prepared = geta.prepare(model, images, config)
    held = NormalGates(prepared.num_prunable, -9.0, torch.device("cpu"))
    held.attach_(model, gated_slots(prepared))
    factors = torch.rand(prepared.num_prunable) + 0.1
    with torch.no_grad():
        held.mu.copy_(factors)
        held.log_variance.fill_(-60.0)  # no noise
        of = {slot.name: factors[slot.group] for slot in prepared.slots}
        x = plain[3](plain[2](plain[1](plain[0](images)) * of["1.weight"].view(1, -1, 1, 1)))
        x = plain[7](plain[6](plain[5](plain[4](x) * of["4.weight"].view(1, -1, 1, 1))))
        assert torch.allclose(model(images), x, atol=1e-5)
    model.eval(), plain.eval()
    before = model(images)
    held.merge_()
    assert torch.allclose(model(images), before, atol=1e-5)
    held.detach_(model)
    assert torch.allclose(model(images), before, atol=1e-5)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}


def test_one_draw_serves_a_whole_forward_pass_and_the_next_pass_draws_anew() -> None:
    prepared = prepared_net()
    held = NormalGates(prepared.num_prunable, 0.0, torch.device("cpu"))
    held.attach_(prepared.model, gated_slots(prepared))
    seen: list[Tensor] = []
    for module in (prepared.model[1], prepared.model[4]):  # type: ignore[index]
        module.register_forward_hook(lambda *_: seen.append(held.factors().detach().clone()))
    prepared.model(batches(1)[0][0]).sum().backward()
    prepared.model(batches(1)[0][0])
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3]) and not torch.equal(seen[0], seen[2])
    assert held.mu.grad is not None and held.log_variance.grad is not None
    assert (held.mu.grad != 0).all() and (held.log_variance.grad != 0).all()


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "mobilenetv2", "encoder"])
def test_the_soft_cost_is_the_accountants_at_whole_numbers(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = build_small(name), example_inputs(name, 2, small=True)
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=(2, 16), activation_bits=(2, 16))
    prepared = geta.prepare(model, inputs, config)
    cost = SoftCost(prepared, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for share in (0.0, 0.3, 0.7):
        dead = torch.rand(prepared.num_prunable, generator=generator) < share
        bits = torch.randint(2, 17, (len(prepared.sites),), generator=generator).float()
        named = {site.name: float(width) for site, width in zip(prepared.sites, bits, strict=True)}
        exact = geta.accounting.bops(prepared.account.layers(dead, named)) / (
            geta.accounting.macs(prepared.dense) * 1024
        )
        assert float(cost.relative_bops((~dead).float(), bits)) == pytest.approx(exact, rel=1e-5)


def test_grids_move_relative_to_their_values_and_keep_their_bounds() -> None:
    prepared = prepared_net(learn_exponent=True)
    grids = Grids(prepared, {"weight": (2, 8), "input": (4, 8)}, lr=0.01)
    before = grids.values()
    grids.step(torch.ones_like(grids.theta), 0.01)
    after = grids.values()
    # Adam's first step is the learning rate in the direction of the gradient.
    assert torch.allclose(after.q_m / before.q_m, torch.full_like(after.q_m, math.exp(-0.01)), rtol=1e-5)
    assert after.t is not None
    learned = torch.tensor([site.quantizer.t is not None for site in prepared.sites])
    assert torch.allclose(after.t[learned], torch.full_like(after.t[learned], math.exp(-0.01)), rtol=1e-5)
    assert (after.t[~learned] == 1).all()
    for _ in range(300):
        grids.step(torch.ones_like(grids.theta) * torch.tensor([[-1.0], [0.0], [0.0]]), 0.1)
    grids.write()
    bits = {site.name: float(site.quantizer.bits()) for site in prepared.sites}
    lowest = {"weight": 2, "input": 4}
    assert all(bits[site.name] == pytest.approx(lowest[site.kind], abs=1e-3) for site in prepared.sites)


def test_the_gradient_by_the_logarithm_is_right() -> None:
    """Against finite differences of the loss by theta, at 2 bits, where the derivative by d is exact between steps."""
    prepared = prepared_net(learn_exponent=False)
    prepared.model.double().eval()
    for site in prepared.sites:
        site.quantizer.set_bits_(3.3)
    images = batches(1)[0][0].double()
    weights = torch.randn(10, dtype=torch.float64)
    grids = Grids(prepared, {"weight": (2, 16), "input": (2, 16)}, lr=0.01)
    (prepared.model(images) @ weights).sum().backward()
    row = grids.gradient()[1]
    index = len(prepared.sites) // 2 - 1  # the last weight: nothing but its own clipping depends on its range
    start = float((prepared.model(images) @ weights).sum().detach())
    step = 1e-7
    with torch.no_grad():
        grids.theta[1, index] += step
    grids.write()
    change = (float((prepared.model(images) @ weights).sum()) - start) / step
    assert change == pytest.approx(float(row[index]), rel=1e-3, abs=1e-3)


def test_nearest_widths() -> None:
    bits = torch.tensor([2.0, 2.6, 3.1, 5.5, 5.8, 11.4, 16.0])
    assert nearest(bits, (2, 4, 8, 16)).tolist() == [2, 2, 4, 4, 8, 16, 16]
    assert nearest(bits, range(2, 17)).tolist() == [2, 3, 3, 6, 6, 11, 16]


def test_the_best_of_each_family_never_goes() -> None:
    score = torch.tensor([5.0, 1.0, 3.0, 0.5, 0.4, 0.3])
    family = torch.tensor([0, 0, 0, 1, 1, 1])
    assert removable(score, family, 1).tolist() == [5, 4, 1, 2]
    assert removable(score, family, 2).tolist() == [5, 1]


@pytest.mark.parametrize(("target", "start"), list(product([0.004, 0.01, 0.05, 0.12], [4, 8])))
def test_a_plan_meets_its_target(target: float, start: int) -> None:
    torch.manual_seed(0)
    model, inputs = build_small("digits_cnn"), example_inputs("digits_cnn", 2, small=True)
    config = geta.CompressionConfig(sparsity=0.0, weight_bits=(2, 16), activation_bits=(2, 16))
    prepared = geta.prepare(model, inputs, config)
    cost = SoftCost(prepared, torch.device("cpu"))
    grids = Grids(prepared, {"weight": (2, 16), "input": (2, 16)}, 0.01)
    order = removable(torch.rand(prepared.num_prunable), prepared.family, 1)
    learned = torch.full((len(prepared.sites),), float(start)) + torch.rand(len(prepared.sites)) - 0.5
    for widths in (None, (2, 4, 8, 16)):
        plan = Plan(cost, order, grids.choices(widths), grids.average, grids.sizes, prepared.num_prunable)
        bits = nearest(learned, widths or range(2, 17))
        count, chosen = plan.meet(bits, learned, prepared.num_prunable // 3, target)
        assert abs(plan.relative_bops(count, chosen) / target - 1) < 0.1
        assert set(chosen.tolist()) <= set(widths or range(2, 17))


def test_modules_without_groups_have_no_gates() -> None:
    prepared = geta.prepare(nn.Linear(4, 3), torch.randn(2, 4), geta.CompressionConfig(sparsity=0.0))
    assert gated_slots(prepared) == []
