"""Ranges of inputs come from calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from geta_core.errors import GetaError
from geta_core.quantize import attach, calibrate_, quantize
from geta_core.quantize.calibrate import NEVER_RAN
from tests.geta_core.quantize.nets import config, conv_net


def run(model: nn.Module, batch: Tensor) -> None:
    model(batch)


def test_ranges_grids_and_sizes() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Sigmoid(), nn.Linear(3, 2))
    batches = [torch.randn(5, 4), torch.randn(3, 4) * 2]
    sites = attach(net, config(inputs=True, bits=5, learn_exponent=False))
    seen: list[list[Tensor]] = [[], [], []]
    handles = [
        net[i].register_forward_pre_hook(lambda module, args, into=into: into.append(args[0]))
        for i, into in zip((0, 2, 4), seen, strict=True)
    ]
    calibrate_(net, sites, iter(batches), run)
    for handle in handles:
        handle.remove()
    for site, values in zip(sites[3:], seen, strict=True):
        everything = torch.cat(values)
        assert site.quantizer.q_m.item() == everything.abs().max().item()
        assert site.quantizer.signed == bool((everything < 0).any())
        assert site.quantizer.bits().item() == 5
        assert site.numel == everything.shape[1]
        assert site.fired
    assert [site.quantizer.signed for site in sites[3:]] == [True, False, False]


def test_inputs_pass_unchanged_while_weights_stay_quantized() -> None:
    layer = nn.Linear(4, 3)
    sites = attach(layer, config(bits=2))
    q, original = sites[0].quantizer, layer.parametrizations.weight.original
    outputs = []
    x = torch.randn(6, 4)
    calibrate_(layer, sites, [x], lambda module, batch: outputs.append(module(batch)))
    expected = nn.functional.linear(x, quantize(original, q.d, q.q_m, q.t, True), layer.bias)
    assert torch.equal(outputs[0], expected)
    assert not torch.equal(layer(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_its_own_mode_and_is_left_as_it_was(training: bool) -> None:
    net = conv_net().train(training)
    sites = attach(net, config())
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.named_buffers()}

    def watch(model: nn.Module, batch: Tensor) -> None:
        assert [module.training for module in model.modules()] == modes
        assert not nn.functional.dropout(model(batch)).requires_grad

    random = torch.get_rng_state()
    calibrate_(net, sites, [torch.ones(2, 3, 8, 8)], watch)
    assert [module.training for module in net.modules()] == modes
    assert before.keys() == dict(net.named_buffers()).keys() != set()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_a_failing_forward_leaves_no_observer_and_restores_the_mode() -> None:
    net = conv_net()
    sites = attach(net, config())
    with pytest.raises(RuntimeError):
        calibrate_(net, sites, [torch.randn(2, 4, 8, 8)], run)
    assert net.training
    assert all(site.quantizer.observer is None for site in sites)


def test_sites_that_never_ran_say_so() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.used(x), self.unused.weight)

    net = Partly()
    sites = {site.name: site for site in attach(net, config())}
    calibrate_(net, sites.values(), [torch.randn(2, 4)], run)
    assert sites["used.input"].fired
    assert not sites["unused.input"].fired
    assert sites["unused.input"].reason == NEVER_RAN
    assert sites["unused.input"].numel == 0
    assert sites["unused.weight"].fired


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_inputs_must_be_finite(bad: float) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    sites = attach(net, config())
    batch = torch.randn(2, 4)
    batch[1, 2] = bad
    with pytest.raises(GetaError, match=r"input of 0 must be finite"):
        calibrate_(net, sites, [batch], run)


@pytest.mark.parametrize("batches", [[], [torch.empty(0, 4)]])
def test_at_least_one_example_is_needed(batches: list[Tensor]) -> None:
    net = nn.Linear(4, 4)
    sites = attach(net, config())
    with pytest.raises(GetaError, match="at least one batch"):
        calibrate_(net, sites, batches, run)


def test_an_input_that_is_always_zero_gets_a_positive_range() -> None:
    layer = nn.Linear(4, 4)
    sites = attach(layer, config())
    calibrate_(layer, sites, [torch.zeros(2, 4)], run)
    assert sites[1].quantizer.q_m.item() == 1.0
    assert not sites[1].quantizer.signed


def test_batches_of_any_structure_count_their_examples() -> None:
    layer = nn.Linear(4, 4)
    sites = attach(layer, config())
    x = torch.randn(6, 3, 4)
    calibrate_(layer, sites, [{"label": "text", "inputs": (x, None)}], lambda module, batch: module(batch["inputs"][0]))
    assert sites[1].numel == 12
    calibrate_(layer, sites, [Call((x[..., :2],), {"more": x[..., 2:]})], lambda module, batch: batch.run(module))
    assert sites[1].numel == 12


@dataclass
class Call:
    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]

    def run(self, model: nn.Module) -> Tensor:
        return model(torch.cat((*self.args, *self.kwargs.values()), dim=-1))


def test_low_precision_inputs_are_observed_in_float32() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    sites = attach(layer, config())
    batch = torch.randn(6, 4, dtype=torch.bfloat16)
    calibrate_(layer, sites, [batch], run)
    assert sites[1].quantizer.q_m.dtype == torch.float32
    assert sites[1].quantizer.q_m.item() == batch.abs().max().item()


def _rank(rank: int, path: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(path, 2), rank=rank, world_size=2)
    try:
        layer = nn.Linear(2, 2)
        sites = attach(layer, config())
        batch = torch.full((3, 2), 2.0) if rank == 0 else torch.full((1, 2), -5.0)
        calibrate_(layer, sites, [batch], run, process_group=dist.group.WORLD)
        quantizer = sites[1].quantizer
        assert (quantizer.q_m.item(), quantizer.signed, sites[1].numel) == (5.0, True, 2)
    finally:
        dist.destroy_process_group()


def test_ranks_agree_on_ranges_and_grids(tmp_path: Path) -> None:
    """The signed flag is no tensor: DDP would not broadcast it, so that ranks could train on different grids."""
    path = str(tmp_path / "store")
    other = torch.multiprocessing.get_context("spawn").Process(target=_rank, args=(1, path))
    other.start()
    try:
        _rank(0, path)
    finally:
        other.join(timeout=60)
        other.kill()
    assert other.exitcode == 0
