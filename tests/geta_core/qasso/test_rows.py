"""Parameters as rows: memory layouts, blocks, two prunable dimensions, channels across the rows, moved memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geta_core.config import CompressionConfig
from geta_core.errors import ConfigError
from geta_core.qasso import QASSO, forgetting
from geta_core.qasso.segments import RowSum, map_rows
from tests.geta_core.qasso.toy import Slot, Toy, conv_net, mlp, original, quantize_weight, schedule, train

CONFIG = CompressionConfig(sparsity=0.6, weight_bits=(4, 8), activation_bits=(4, 8), initial_bits=8)


def trained(toy: Toy, steps: int = 21, **kwargs: Any) -> QASSO:
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), **{"lr": 0.05, "weight_decay": 1e-2, **kwargs})
    train(toy, optimizer, range(steps))
    return optimizer


def assert_same(one: Toy, two: Toy) -> None:
    other = two.model.state_dict()
    for key, value in one.model.state_dict().items():
        # float64: another order of summation, over 21 steps.
        assert torch.allclose(value.double(), other[key].double(), rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("block", [1, 7, 16, 100])
@pytest.mark.parametrize("per_channel", [False, True])
def test_blocks_change_nothing(block: int, per_channel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CompressionConfig(sparsity=0.6, weight_bits=(4, 8), initial_bits=8, per_channel=per_channel)
    whole, cut = conv_net(config, torch.float64), conv_net(config, torch.float64)
    first = trained(whole)
    monkeypatch.setattr(forgetting, "CPU_BLOCK", block)
    second = trained(cut)
    assert torch.equal(first.pruned, second.pruned)
    assert_same(whole, cut)


def test_channels_last_weights_are_worked_on_in_place() -> None:
    plain, other = conv_net(CONFIG, torch.float64), conv_net(CONFIG, torch.float64)
    other.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = original(other.model.conv)  # type: ignore[arg-type]
    assert not weight.is_contiguous()
    pointer = weight.data_ptr()
    first, second = trained(plain), trained(other)
    assert torch.equal(first.pruned, second.pruned)
    assert_same(plain, other)
    assert weight.data_ptr() == pointer


def test_a_transposed_weight_is_worked_on_in_place() -> None:
    plain, other = mlp(CONFIG, torch.float64), mlp(CONFIG, torch.float64)
    weight = original(other.model.get_submodule("2"))
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    assert torch.equal(trained(plain).pruned, trained(other).pruned)
    assert_same(plain, other)


def test_memory_that_moves_between_steps_is_followed() -> None:
    plain, other = mlp(CONFIG, torch.float64), mlp(CONFIG, torch.float64)
    first, second = (QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.05) for toy in (plain, other))
    for step in range(21):
        train(plain, first, range(step, step + 1))
        train(other, second, range(step, step + 1))
        for parameter in other.model.parameters():
            parameter.data = parameter.data.clone()
    assert torch.equal(first.pruned, second.pruned)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True))


def test_a_second_dimension_that_is_never_pruned_changes_nothing() -> None:
    """It makes every element a row of its own, which must give the same sums, rates and steps."""
    for per_channel in (False, True):
        config = CompressionConfig(sparsity=0.6, weight_bits=(4, 8), initial_bits=8, per_channel=per_channel)
        plain, other = mlp(config, torch.float64), mlp(config, torch.float64)
        for name in ("0", "2"):
            weight = original(other.model.get_submodule(name))
            other.slots.append(Slot(f"{name}.in", weight, 1, torch.full((weight.shape[1],), -1)))
        assert torch.equal(trained(plain).pruned, trained(other).pruned)
        assert_same(plain, other)


def two_dimensional(per_channel: bool) -> Toy:
    """A matrix whose rows and columns are groups of two families."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3))
    toy = Toy(model, CompressionConfig(sparsity=0.5, weight_bits=(4, 8), per_channel=per_channel))
    quantize_weight(toy, "0", 0 if per_channel else None)
    toy.add_family([(original(model[0]), 0)], 5)
    toy.add_family([(original(model[0]), 1)], 6)
    return toy


@pytest.mark.parametrize("per_channel", [False, True])
def test_two_prunable_dimensions_of_one_parameter(per_channel: bool) -> None:
    toy = two_dimensional(per_channel)
    optimizer = trained(toy)
    weight = original(toy.model.get_submodule("0"))
    rows, columns = optimizer.pruned[:5], optimizer.pruned[5:]
    assert int(rows.sum() + columns.sum()) == optimizer.target_groups == 5
    assert torch.equal(weight != 0, ~rows[:, None] & ~columns[None, :])


def test_an_element_in_two_redundant_groups_is_forgotten_once() -> None:
    toy = two_dimensional(per_channel=False)
    toy.config = CompressionConfig(sparsity=0.9, weight_bits=None)
    toy.sites.clear()
    plan = schedule(warmup=0, projection=0, joint=4, cooldown=0, P=1)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=plan, lr=0.0)
    weight = original(toy.model.get_submodule("0"))
    before = weight.detach().clone()
    optimizer.step()
    redundant = optimizer._redundant[:5, None] | optimizer._redundant[None, 5:]
    assert int(redundant.sum()) == 30 - 1 * 1
    assert torch.equal(weight, torch.where(redundant, before - 0.25 * before, before))


def test_channels_that_cross_the_rows_have_their_own_d() -> None:
    """ConvTranspose: channels on dimension 1, prunable rows on dimension 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(6, 4, 3))
    toy = Toy(model, CompressionConfig(sparsity=0.5, weight_bits=(4, 8), per_channel=True))
    quantize_weight(toy, "0", 1)
    toy.add_family([(original(model[0]), 0)], 6)
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
    for step in range(21):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)) * 0.1
        optimizer.step()
    zero = (original(model[0]) == 0).flatten(1).all(1)
    assert int(zero.sum()) == 3
    assert torch.equal(zero, optimizer.pruned)
    bits = toy.sites[0].quantizer.bits()
    assert bits.shape == (1, 4, 1)
    assert torch.equal(bits, optimizer.fixed_bits()["0.weight"].float())


def test_row_sums_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    number = torch.randint(0, 5, (40,), generator=generator)
    number[number == 3] = 2
    values = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    found = RowSum(number, 6, torch.device("cpu"))(values)
    for kind in range(2):
        for count in range(6):
            assert abs(float(found[kind, count]) - float(values[kind][number == count].sum())) < 1e-14


def test_slots_that_do_not_fit_are_all_named() -> None:
    base = torch.zeros(8, 8)
    weight, sliced = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(base[:, ::2])
    sliced.data = base[:, ::2]
    none: Tensor = torch.full((8,), -1)
    with pytest.raises(ConfigError) as caught:
        map_rows([Slot("one", weight, 1, none), Slot("two", sliced, 0, none)], {})
    assert "slot 'one' must have one group number per index of dimension 1" in caught.value.faults[0]
    assert "slot 'two' must be dense in memory" in caught.value.faults[1]
