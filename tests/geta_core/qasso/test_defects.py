"""Defects of the released code (microsoft/geta at 0518a57) that this optimizer must not have, one test or more each."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from geta_core.config import CompressionConfig
from geta_core.errors import ConfigError
from geta_core.qasso import QASSO
from geta_core.qasso.joint import Products, forget_rate, step_size
from geta_core.qasso.selection import Selector
from tests.geta_core.qasso.toy import Toy, backward, conv_net, mlp, original, quantize_weight, schedule, train

W_ONLY = CompressionConfig(sparsity=0.5, weight_bits=(4, 8))
BOTH = CompressionConfig(sparsity=0.5, weight_bits=(4, 8), activation_bits=(4, 8))
PRUNE = CompressionConfig(sparsity=0.5, weight_bits=None)
JOINT_ONLY = schedule(warmup=0, projection=0, joint=4, cooldown=2, P=1)


def redundant_after_first_step(toy: Toy, optimizer: QASSO) -> torch.Tensor:
    train(toy, optimizer, range(1))
    assert optimizer.stage == "joint"
    redundant: torch.Tensor = optimizer.state_dict()["qasso"]["redundant"]
    assert int(redundant.sum()) == optimizer.target_groups
    return redundant


def test_defect_01_negative_mean_does_not_stop_forgetting() -> None:
    """Gamma is 0 where the norm of the clipped weights is 0, not where their signed mean is below 1e-8."""
    for sign in (1.0, -1.0):
        toy = mlp(PRUNE, torch.float64)
        weight = original(toy.model.get_submodule("0"))
        weight.data = sign * weight.data.abs()
        before = weight.detach().clone()
        redundant = redundant_after_first_step(toy, QASSO(toy, torch.optim.SGD, schedule=JOINT_ONLY, lr=0.0))[:8]
        assert bool(redundant.any())
        assert torch.equal(weight[redundant], 0.75 * before[redundant])
        assert torch.equal(weight[~redundant], before[~redundant])


def test_defect_02_the_rows_of_the_redundant_groups_shrink_on_every_axis() -> None:
    """Groups of two channels each (as heads), on dimension 1 of a transposed convolution and 0 of the norm."""
    toy = conv_net(PRUNE, torch.float64)
    for parameter in toy.model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    before = {id(slot.parameter): slot.parameter.detach().clone() for slot in toy.slots}
    redundant = redundant_after_first_step(toy, QASSO(toy, torch.optim.SGD, schedule=JOINT_ONLY, lr=0.0))
    assert bool(redundant[8:].any()), "groups of the second family must be among them"
    for slot in toy.slots:
        rows = slot.parameter.detach().movedim(slot.dim, 0)
        old = before[id(slot.parameter)].movedim(slot.dim, 0)
        for row, start, group in zip(rows, old, slot.group.tolist(), strict=True):
            assert torch.allclose(row, start * (0.75 if redundant[group] else 1.0), rtol=1e-15, atol=0), slot.name


@pytest.mark.parametrize("per_channel", [False, True])
def test_defect_03_every_layer_has_its_own_d_and_range(per_channel: bool) -> None:
    """Layers whose weights differ by a factor of 1000, with redundant groups in both: each keeps its own range."""
    config = CompressionConfig(sparsity=0.5, weight_bits=(4, 6), per_channel=per_channel)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight.data *= 1e-3
    toy = Toy(model, config)
    for name in ("0", "2", "4"):
        quantize_weight(toy, name, 0 if per_channel else None)
    # One family: both layers have members of every group, as layers joined by an addition have.
    toy.add_family([(original(model[n]), 0) for n in (0, 2)] + [(model[n].bias, 0) for n in (0, 2)], 8)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.05)
    for step in range(21):
        optimizer.zero_grad()
        backward(toy, step)
        optimizer.step()
        if step >= 7:
            for site in toy.sites:
                bits = site.quantizer.bits()
                assert bool(((bits >= 4) & (bits <= 6)).all()), (step, site.name)
    d = [float(site.quantizer.d.detach().max()) for site in toy.sites]
    assert d[0] > 50 * d[1]


def test_defect_04_two_bits_never_divide_by_zero() -> None:
    with pytest.raises(ConfigError):
        CompressionConfig(weight_bits=(1, 4))
    toy = mlp(CompressionConfig(sparsity=0.5, weight_bits=(2, 2), activation_bits=(2, 2), initial_bits=2))
    train(toy, QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1), range(21))
    for site in toy.sites:
        assert bool(site.quantizer.d.isfinite()) and float(site.quantizer.bits()) == 2


def test_defect_05_activations_are_projected() -> None:
    toy = mlp(CompressionConfig(sparsity=0.5, weight_bits=(4, 8), activation_bits=(3, 5)))
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    train(toy, optimizer, range(8))
    assert [float(site.quantizer.bits()) for site in toy.sites if site.kind == "input"] == [5.0, 5.0, 5.0]
    for step in range(8, 21):
        train(toy, optimizer, range(step, step + 1))
        assert all(3 <= float(site.quantizer.bits()) <= 5 for site in toy.sites if site.kind == "input")


@pytest.mark.parametrize("stage", ["warmup", "projection", "joint", "cooldown"])
def test_defect_06_quantizers_follow_lr_quant_in_every_stage(stage: str) -> None:
    toy = mlp(BOTH, torch.float64)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.01, lr_quant=1e-3, momentum=0.9, weight_decay=0.1)
    step = 0
    while optimizer.stage != stage:
        train(toy, optimizer, range(step, step + 1))
        step += 1
    optimizer.zero_grad()
    backward(toy, step)
    wanted = []
    for site in toy.sites:
        for value in (site.quantizer.q_m, site.quantizer.t):
            if value is not None:
                assert value.grad is not None
                wanted.append((value.detach(), value.detach() - 1e-3 * value.grad))
    assert any(not torch.equal(value, new) for value, new in wanted)
    optimizer.step()
    assert all(torch.equal(value, new) for value, new in wanted)


def test_defect_07_weight_decay_acts_on_weights_alone_and_in_every_stage() -> None:
    toy = mlp(BOTH)
    optimizer = QASSO(toy, torch.optim.AdamW, schedule=JOINT_ONLY, lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0]
    head = original(toy.model.get_submodule("4"))
    for parameter in toy.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before, q_m = head.detach().clone(), toy.sites[0].quantizer.q_m.detach().clone()
    optimizer.step()
    assert torch.equal(head, before * (1 - 0.1 * 0.5))
    assert torch.equal(toy.sites[0].quantizer.q_m, q_m)


@pytest.mark.parametrize(
    ("inner", "kwargs"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"decoupled_weight_decay": True}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_defect_07_weight_decay_is_no_part_of_the_direction(inner: Any, kwargs: dict[str, Any]) -> None:
    """Without a gradient there is no direction, however strong the decay: forgetting is uniform."""
    toy = mlp(PRUNE, torch.float64)
    optimizer = QASSO(toy, inner, schedule=JOINT_ONLY, lr=0.1, weight_decay=0.5, **kwargs)
    for parameter in toy.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = original(toy.model.get_submodule("2"))
    before = weight.detach().clone()
    optimizer.step()
    rows = optimizer.state_dict()["qasso"]["redundant"][8:]
    expected = before * (1 - 0.1 * 0.5 * (1.9 if kwargs.get("nesterov") else 1.0))
    assert torch.allclose(weight[~rows], expected[~rows], rtol=1e-14, atol=0)
    assert torch.allclose(weight[rows], (expected - 0.25 * before)[rows], rtol=1e-13, atol=0)


def test_defect_08_adam_is_torchs_adam() -> None:
    toy = mlp(BOTH)
    optimizer = QASSO(toy, torch.optim.Adam, schedule=schedule(), lr=0.1)
    backward(toy, 0)
    weight = original(toy.model.get_submodule("0"))
    assert weight.grad is not None
    before, grad = weight.detach().clone(), weight.grad.clone()
    optimizer.step()
    assert torch.allclose(optimizer.state[weight]["exp_avg"], 0.1 * grad, rtol=1e-6, atol=0)
    # The bias-corrected first step of Adam is lr * sign(g) up to its epsilon.
    moving = grad.abs() > 1e-4
    assert torch.allclose((before - weight)[moving], 0.1 * grad.sign()[moving], rtol=1e-3, atol=0)


@pytest.mark.parametrize(("projection", "B"), [(6, 3), (7, 3), (8, 3), (5, 5), (9, 5), (4, 1)])
def test_defect_09_bits_are_reduced_b_minus_one_times_however_the_steps_divide(projection: int, B: int) -> None:
    toy = mlp(BOTH)
    plan = schedule(warmup=1, projection=projection, B=B)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=plan, lr=0.1)
    seen = []
    for step in range(1 + projection):
        train(toy, optimizer, range(step, step + 1))
        # d is far finer than the bound, so that the largest bit width is the bound itself.
        seen.append(max(float(site.quantizer.bits()) for site in toy.sites))
    falls = [round(before - after, 3) for before, after in pairwise(seen[1:]) if before - after > 0.5]
    assert falls == ([round(8 / (B - 1), 3)] * (B - 1) if B > 1 else [])
    assert seen[-1] == 8.0


def test_defect_09_more_periods_than_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="projection_periods"):
        schedule(projection=2, B=3)


def test_defect_10_parallel_vectors_and_a_learning_rate_of_zero_end_well() -> None:
    """Cosines of +-1 up to rounding, and d = 0 in the paper's loop, which would never end."""
    x = torch.full((1000,), 0.1)
    for sign in (1.0, -1.0):
        gg = (x * x).sum().reshape(1).double()
        own = Products(gg, gg, sign * gg * (1 + 1e-6), sign * gg * (1 + 1e-6))
        gamma = forget_rate(own, 0.5, 0.999)
        gamma, d = step_size(own, gamma, torch.full_like(gg, 1e-3), torch.full_like(gg, 1e-1), 0.9)
        assert 0 < float(gamma) <= 1 and 1e-3 <= float(d) <= 1e-1
    toy = mlp(BOTH)
    train(toy, QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.0), range(21))
    assert len(toy.zero_groups()) == 9


def test_defect_11_norm_parameters_are_forgotten_once_a_step() -> None:
    toy = conv_net(PRUNE, torch.float64)
    norm = toy.model.norm
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 1.0)
    before = norm.weight.detach().clone()
    redundant = redundant_after_first_step(toy, QASSO(toy, torch.optim.SGD, schedule=JOINT_ONLY, lr=0.0))[:8]
    assert torch.equal(norm.weight, torch.where(redundant, 0.75 * before, before))


def test_defect_12_choice_follows_the_score_not_the_index() -> None:
    """Groups pruned before neither come back nor push the choice towards early layers, and no target is missed."""
    family = torch.zeros(20, dtype=torch.long)
    selector = Selector(family, sparsity=0.5, min_kept=1, divisible_by=1)
    pruned = torch.zeros(20, dtype=torch.bool)
    pruned[15:] = True  # the highest scores of all, in this period
    score = torch.arange(20.0).flip(0)
    score[15:] = 100.0
    chosen = selector.choose(score, pruned, 10)
    assert chosen.nonzero().flatten().tolist() == [10, 11, 12, 13, 14]


def test_defect_13_uniform_forgetting_goes_to_zero_in_equal_parts() -> None:
    toy = mlp(PRUNE, torch.float64)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=JOINT_ONLY, lr=0.0)
    weight = original(toy.model.get_submodule("2"))
    before = weight.detach().clone()
    rows = redundant_after_first_step(toy, optimizer)[8:]
    for left in (0.5, 0.25, 0.0):
        train(toy, optimizer, range(1))
        assert torch.allclose(weight[rows], left * before[rows], rtol=1e-14, atol=0)


def test_defect_14_the_state_is_complete_and_schedulers_reach_lr_quant() -> None:
    toy = mlp(BOTH)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1, lr_quant=1e-3, momentum=0.9)
    train(toy, optimizer, range(10))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"state", "param_groups", "qasso"}
    assert state["qasso"]["clock"] == 10
    assert int(state["qasso"]["redundant"].sum()) == 3
    other = QASSO(mlp(BOTH), torch.optim.SGD, schedule=schedule(), lr=0.5, lr_quant=0.5, momentum=0.1)
    other.load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == [0.1, 1e-3]
    assert torch.equal(other.state_dict()["qasso"]["redundant"], state["qasso"]["redundant"])
    torch.optim.lr_scheduler.LambdaLR(other, lambda _: 0.5)
    assert [group["lr"] for group in other.param_groups] == [0.05, 5e-4]


def test_defect_15_gradients_that_are_none_can_be_clipped_and_no_option_is_dropped() -> None:
    toy = mlp(BOTH)
    optimizer = QASSO(
        toy, torch.optim.AdamW, schedule=schedule(), lr=0.1, betas=(0.8, 0.9), eps=1e-3, amsgrad=True, weight_decay=0.3
    )
    for group in optimizer.inner.param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.8, 0.9), 1e-3, True)
    for step in range(21):
        optimizer.zero_grad(set_to_none=True)
        backward(toy, step)
        original(toy.model.get_submodule("4")).grad = None
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)
        torch.nn.utils.clip_grad_value_(toy.model.parameters(), 0.01)
        optimizer.step()
    assert len(toy.zero_groups()) == 9
    with pytest.raises(TypeError, match="gradient_clip"):
        QASSO(toy, torch.optim.AdamW, schedule=schedule(), lr=0.1, gradient_clip=1.0)


def test_defect_16_layers_are_told_apart_by_identity() -> None:
    """Names that are parts of other names change nothing."""

    def build(names: tuple[str, str]) -> Toy:
        torch.manual_seed(0)
        model = nn.Sequential()
        for name, size in zip(names, ((6, 8), (8, 3)), strict=True):
            model.add_module(name, nn.Linear(*size))
        toy = Toy(model, W_ONLY)
        for name in names:
            quantize_weight(toy, name)
        first = model.get_submodule(names[0])
        toy.add_family([(original(first), 0), (first.bias, 0)], 8)  # type: ignore[list-item]
        train(toy, QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1), range(21))
        return toy

    one, two = build(("features1", "features10")), build(("a", "b"))
    assert all(torch.equal(x, y) for x, y in zip(one.model.parameters(), two.model.parameters(), strict=True))
