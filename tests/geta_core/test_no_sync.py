"""No step of QASSO reads a value back to the host, in any stage and at any period boundary."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geta_core as geta
from orchestration.models.registry import build
from tests.geta_core.host_reads import HostReads

INNER: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-2}),
}
# Steps 1 to 3 and so on; two periods of two steps in the projection, three of two steps in the joint stage.
SCHEDULE = geta.Schedule(warmup=3, projection=4, joint=6, cooldown=3, projection_periods=2, pruning_periods=3)
MOST = {"warmup": 160, "projection": 160, "joint": 1300, "cooldown": 160}
"""Operations of a step beyond the inner optimizer's: batched over the network's 22 layers and 44 quantizers."""
STAGES = ["warmup"] * 3 + ["projection"] * 4 + ["joint"] * 6 + ["cooldown"] * 3


def prepared(model: str) -> geta.Prepared:
    config = geta.CompressionConfig(
        sparsity=0.5, weight_bits=(4, 8), activation_bits=(4, 8), learn_activation_exponent=True
    )
    return geta.prepare(build(model), torch.randn(2, 3, 32, 32), config)


def gradients(model: nn.Module) -> None:
    model.zero_grad()
    F.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([1, 2])).backward()


def counted(action: Callable[[], Any]) -> HostReads:
    mode = HostReads()
    with mode:
        action()
    return mode


@pytest.fixture(scope="module")
def original() -> tuple[geta.Prepared, dict[str, Any]]:
    """Return a real prepared network and its state before any step."""
    torch.manual_seed(0)
    work = prepared("resnet20")
    return work, copy.deepcopy(work.model.state_dict())


@pytest.fixture
def resnet20(original: tuple[geta.Prepared, dict[str, Any]]) -> geta.Prepared:
    work, state = original
    work.model.load_state_dict(state)
    return work


def plain(work: geta.Prepared, name: str) -> HostReads:
    """Return what the inner optimizer does alone in a step on the same two groups of parameters."""
    inner, keywords = INNER[name]
    own = [p for site in work.sites for p in site.quantizer.parameters()]
    ids = set(map(id, own))
    groups: list[dict[str, Any]] = [{"params": [p for p in work.model.parameters() if id(p) not in ids]}]
    groups.append({"params": own, "weight_decay": 0, **({"momentum": 0} if "momentum" in keywords else {})})
    optimizer = inner(groups, **{**keywords, "lr": 0.0})
    gradients(work.model)
    optimizer.step()  # makes the state
    return counted(optimizer.step)


@pytest.mark.parametrize("name", INNER)
def test_no_step_reads_back(resnet20: geta.Prepared, name: str) -> None:
    alone = plain(resnet20, name)
    inner, keywords = INNER[name]
    optimizer = geta.QASSO(resnet20, inner, schedule=SCHEDULE, **keywords)
    stages, reads, many = [], {}, {}
    for number in range(SCHEDULE.total):
        gradients(resnet20.model)
        stages.append(optimizer.stage)
        mode = counted(optimizer.step)
        # The first step looks up where the parameters are, and makes the inner optimizer's state.
        if number:
            extra = mode.all.total() - alone.all.total()
            if not 0 < extra <= MOST[stages[-1]]:
                many[number, stages[-1]] = extra
            if mode.reads != alone.reads:
                reads[number, stages[-1]] = (mode.reads, alone.reads)
    assert stages == STAGES
    assert resnet20.zero_groups() == optimizer.target_groups > 0
    assert not reads
    assert not many


MASK = torch.tensor([True, False])
CASES: dict[str, Callable[[], object]] = {
    "item": lambda: torch.ones(()).item(),
    "truth of a tensor": lambda: bool(torch.ones(())),
    "nonzero": lambda: torch.nonzero(torch.ones(2)),
    "masked_select": lambda: torch.masked_select(torch.ones(2), MASK),
    "indexing with a mask": lambda: torch.ones(2)[MASK],
    "writing through a mask": lambda: torch.ones(2).__setitem__(MASK, torch.tensor([3.0])),
    "copy to the CPU": lambda: torch.ones(2, device="meta").to("cpu"),
    "copy into a CPU tensor": lambda: torch.ones(2).copy_(torch.ones(2, device="meta")),
    "several copies": lambda: torch._foreach_copy_([torch.ones(2)], [torch.ones(2, device="meta")]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mode_finds(case: str) -> None:
    mode = HostReads()
    with mode:
        try:
            CASES[case]()
        except (NotImplementedError, RuntimeError):  # a meta tensor has no values to copy
            assert "copy" in case or "copies" in case
    assert mode.reads.total() == 1


def test_the_mode_lets_batched_operations_pass() -> None:
    def batched() -> Tensor:
        values = [torch.ones(3), torch.ones(3)]
        torch._foreach_add_(values, 1.0)
        return torch.where(torch.cat(values) > 1, 0.0, 1.0)[torch.tensor([0, 1])]

    mode = counted(batched)
    assert mode.reads == Counter()
    assert mode.all.total() > 3
