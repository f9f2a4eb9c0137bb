"""QASSO behaves like any torch.optim.Optimizer: schedulers, AMP, accumulation, closures, missing gradients, hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from geta_core.config import CompressionConfig
from geta_core.errors import ConfigError, ScheduleError
from geta_core.qasso import QASSO, Schedule
from tests.geta_core.qasso.toy import Toy, backward, conv_net, mlp, original, quantize_weight, schedule, train

CONFIG = CompressionConfig(sparsity=0.5, weight_bits=(4, 8), activation_bits=(4, 8))
WARMUP_ONLY = Schedule(warmup=50, projection=0, joint=1, cooldown=0, pruning_periods=1)


def values(toy: Toy) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in toy.model.state_dict().items()}


def test_parameters_are_split_into_two_groups_each_once() -> None:
    toy = mlp(CONFIG)
    toy.model.register_module("tied", toy.model.get_submodule("0"))
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    first, second = optimizer.param_groups
    assert len(first["params"]) == 6
    assert len(second["params"]) == 3 * 3 + 3 * 2
    assert (first["lr"], first["momentum"], first["weight_decay"], first["nesterov"]) == (0.1, 0.9, 1e-3, True)
    assert (second["lr"], second["momentum"], second["weight_decay"], second["nesterov"]) == (1e-4, 0, 0, False)
    assert toy.bound is optimizer


def test_a_quantizer_that_two_sites_share_is_updated_once() -> None:
    toy = mlp(CONFIG)
    site = toy.sites[0]
    toy.sites.append(type(site)(**{**vars(site), "name": "tied.weight"}))
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    twin = mlp(CONFIG)
    alone = QASSO(twin, torch.optim.SGD, schedule=schedule(), lr=0.1)
    train(toy, optimizer, range(21))
    train(twin, alone, range(21))
    assert all(torch.equal(value, values(twin)[key]) for key, value in values(toy).items())
    assert torch.equal(optimizer.fixed_bits()["tied.weight"], optimizer.fixed_bits()["0.weight"])


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_warmup_is_the_inner_optimizer(inner: type[torch.optim.Optimizer]) -> None:
    toy, twin = (mlp(CompressionConfig(sparsity=0.5, weight_bits=None)) for _ in range(2))
    train(toy, QASSO(toy, inner, schedule=WARMUP_ONLY, lr=0.01, weight_decay=0.01), range(20))
    train(twin, inner(twin.model.parameters(), lr=0.01, weight_decay=0.01), range(20))  # type: ignore[call-arg]
    assert all(torch.equal(value, values(twin)[key]) for key, value in values(toy).items())


def test_learning_rate_schedulers_act_on_both_groups() -> None:
    toy = mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1, lr_quant=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    for step in range(4):
        train(toy, optimizer, range(step, step + 1))
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-5], rel=1e-12)
    assert [group["lr"] for group in optimizer.inner.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_one_cycle_changes_the_momentum_of_the_inner_optimizer() -> None:
    toy = mlp(CompressionConfig(sparsity=0.5, weight_bits=None))
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30)
    train(toy, optimizer, range(1))
    scheduler.step()
    assert optimizer.inner.param_groups[0]["momentum"] == optimizer.param_groups[0]["momentum"] != 0.9


def test_an_overflow_skips_the_step_as_a_whole() -> None:
    toy, twin = mlp(CONFIG), mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1, momentum=0.9)
    plain = QASSO(twin, torch.optim.SGD, schedule=schedule(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for step in range(21):
        for attempt in (0, 1) if step in (1, 5, 10, 20) else (1,):
            optimizer.zero_grad()
            scaler.scale(backward_loss(toy, step)).backward()  # type: ignore[no-untyped-call]
            if attempt == 0:
                original(toy.model.get_submodule("2")).grad[0, 0] = float("inf")  # type: ignore[index]
            before, clock = values(toy), optimizer.clock
            scaler.step(optimizer)
            scaler.update()
            if attempt == 0:
                assert optimizer.clock == clock
                assert all(torch.equal(value, before[key]) for key, value in values(toy).items())
        train(twin, plain, range(step, step + 1))
        assert optimizer.clock == step + 1
    # Scaling by powers of two is exact, so the skipped attempts have left no trace.
    assert all(torch.equal(value, values(twin)[key]) for key, value in values(toy).items())


def backward_loss(toy: Toy, step: int) -> torch.Tensor:
    from tests.geta_core.qasso.toy import batch

    x, y = batch(toy, step)
    return (toy.model(x) - y).square().mean()


def test_bfloat16_autocast_trains_through_every_stage() -> None:
    toy = conv_net(CONFIG)
    optimizer = QASSO(toy, torch.optim.AdamW, schedule=schedule(), lr=1e-2)
    for step in range(21):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = backward_loss(toy, step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert len(toy.zero_groups()) == optimizer.target_groups == 7
    assert all(bool(value.isfinite().all()) for value in toy.model.parameters())


def test_bfloat16_parameters_are_forgotten_in_float32() -> None:
    toy = mlp(CompressionConfig(sparsity=0.5, weight_bits=(4, 8)), torch.bfloat16)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    train(toy, optimizer, range(21))
    assert {p.dtype for p in optimizer.param_groups[0]["params"]} == {torch.bfloat16}
    assert len(toy.zero_groups()) == 9


def test_accumulated_gradients_equal_one_large_batch() -> None:
    toy, twin = mlp(CONFIG, torch.float64), mlp(CONFIG, torch.float64)
    one = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    two = QASSO(twin, torch.optim.SGD, schedule=schedule(), lr=0.1)
    for step in range(21):
        one.zero_grad()
        two.zero_grad()
        (sum(backward_loss(toy, 2 * step + part) for part in (0, 1)) / 2).backward()  # type: ignore[operator, union-attr]
        for part in (0, 1):
            backward(twin, 2 * step + part, scale=0.5)
        one.step()
        two.step()
    for key, value in values(toy).items():
        assert torch.allclose(value, values(twin)[key], rtol=1e-9, atol=1e-12), key
    assert torch.equal(one.pruned, two.pruned)


def test_a_closure_is_called_once_with_gradients_and_its_loss_is_returned() -> None:
    toy, twin = mlp(CONFIG), mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    plain = QASSO(twin, torch.optim.SGD, schedule=schedule(), lr=0.1)
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        calls.append(float(backward(toy, len(calls))))
        return calls[-1]

    losses = [optimizer.step(closure) for _ in range(21)]
    train(twin, plain, range(21))
    assert losses == calls
    assert all(torch.equal(value, values(twin)[key]) for key, value in values(toy).items())


def test_gradients_are_left_as_they_were() -> None:
    toy = mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    for step in range(21):
        optimizer.zero_grad()
        backward(toy, step)
        grads = {name: (p.grad, p.grad.clone()) for name, p in toy.model.named_parameters() if p.grad is not None}
        optimizer.step()
        for name, parameter in toy.model.named_parameters():
            assert parameter.grad is grads[name][0]
            assert torch.equal(grads[name][0], grads[name][1]), name


def test_parameters_without_a_gradient_are_skipped_but_their_rows_still_go() -> None:
    toy = mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1, weight_decay=0.1, momentum=0.9)
    head, first = (original(toy.model.get_submodule(name)) for name in ("4", "0"))
    before = head.detach().clone()
    for step in range(21):
        optimizer.zero_grad()
        backward(toy, step)
        head.grad = first.grad = None
        for site in toy.sites[:2]:
            site.quantizer.d.grad = site.quantizer.q_m.grad = None
        optimizer.step()
    assert torch.equal(head, before)
    assert len(toy.zero_groups()) == 9


def test_steps_without_any_gradient_keep_every_promise() -> None:
    toy = mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.AdamW, schedule=schedule(), lr=0.1)
    for _ in range(21):
        optimizer.step()
    assert len(toy.zero_groups()) == 9
    assert optimizer.finished


def test_a_learning_rate_of_zero_is_safe() -> None:
    toy = mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.0, lr_quant=0.0)
    before = original(toy.model.get_submodule("2")).detach().clone()
    train(toy, optimizer, range(21))
    weight = original(toy.model.get_submodule("2"))
    kept = (weight != 0).any(1)
    assert torch.equal(weight[kept], before[kept])
    assert len(toy.zero_groups()) == 9
    # d is moved by PPSG alone: to the fewest levels above the range's upper end, 8 bits.
    assert {int(bits) for bits in optimizer.fixed_bits().values()} == {8}


def test_more_parameters_can_be_added() -> None:
    toy = mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    extra.grad = torch.ones(3)
    optimizer.step()
    assert extra.tolist() == [0.5] * 3
    assert optimizer.inner.param_groups is optimizer.param_groups


def test_hooks_of_the_instance_run_once_a_step() -> None:
    toy = mlp(CONFIG)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(toy, optimizer, range(2))
    assert calls == ["pre", "post"] * 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: mlp(CompressionConfig(sparsity=0.5, weight_bits=None)),
        lambda: mlp(CompressionConfig(sparsity=0.5, weight_bits=None, activation_bits=(4, 8))),
        lambda: mlp(CompressionConfig(sparsity=0.0, weight_bits=(4, 8))),
        lambda: without_groups(mlp(CONFIG)),
        lambda: without_groups(mlp(CompressionConfig(sparsity=0.5, weight_bits=None))),
    ],
    ids=["pruning only", "inputs only", "sparsity 0", "no groups", "nothing at all"],
)
def test_missing_parts(build: Any) -> None:
    toy = build()
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    train(toy, optimizer, range(22))
    assert len(toy.zero_groups()) == optimizer.target_groups == optimizer.pruned_groups()
    assert set(optimizer.fixed_bits()) == {site.name for site in toy.sites}
    assert len(optimizer.param_groups) == (2 if toy.sites else 1)
    optimizer.load_state_dict(optimizer.state_dict())


def without_groups(toy: Toy) -> Toy:
    toy.slots, toy.family = [], torch.zeros(0, dtype=torch.long)
    return toy


@pytest.mark.parametrize(
    ("warmup", "projection", "joint", "cooldown"), [(0, 5, 0, 3), (0, 0, 0, 2), (3, 0, 4, 0), (4, 0, 0, 0)]
)
def test_missing_stages(warmup: int, projection: int, joint: int, cooldown: int) -> None:
    sparsity = 0.5 if joint else 0.0
    toy = mlp(CompressionConfig(sparsity=sparsity, weight_bits=(4, 8), activation_bits=(4, 8)))
    plan = schedule(warmup, projection, joint, cooldown, P=2)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=plan, lr=0.1)
    train(toy, optimizer, range(plan.total))
    assert optimizer.finished
    assert len(toy.zero_groups()) == (9 if joint else 0)
    assert all(bits.dtype == torch.int64 and 4 <= int(bits) <= 8 for bits in optimizer.fixed_bits().values())


def test_pruning_without_a_joint_stage_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"sparsity=0\.5 asks for 9 groups .* schedule\.joint is 0"):
        QASSO(mlp(CONFIG), torch.optim.SGD, schedule=schedule(joint=0), lr=0.1)


def test_wrong_constants_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        QASSO(mlp(CONFIG), torch.optim.SGD, schedule=schedule(), lr=0.1, eta=1.0, zeta=0.0, lr_quant=-1.0)
    assert [fault.split()[0] for fault in caught.value.faults] == ["eta", "zeta", "lr_quant"]


def test_quantizers_added_without_slots_are_only_quantized() -> None:
    toy = Toy(nn.Sequential(nn.Linear(6, 3)), CompressionConfig(sparsity=0.5, weight_bits=(2, 2)))
    quantize_weight(toy, "0")
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    train(toy, optimizer, range(21))
    assert int(optimizer.fixed_bits()["0.weight"]) == 2
