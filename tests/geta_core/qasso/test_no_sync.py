"""A step never waits for the device, period boundaries included, and costs few launches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from geta_core.config import CompressionConfig
from geta_core.qasso import QASSO
from tests.geta_core.qasso.test_guarantees import INNER
from tests.geta_core.qasso.toy import Toy, backward, conv_net, mlp, original, quantize_input, quantize_weight, schedule

CONFIG = CompressionConfig(sparsity=0.6, weight_bits=(4, 8), activation_bits=(4, 8))
READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "lift_fresh",
}


class Watch(TorchDispatchMode):
    """Counts operations, and apart from them those that make the host wait or copy from host memory."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.all[name] += 1
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        to_host = name in ("_to_copy", "copy_") and len({str(t.device) for t in tensors} | _target(kwargs, tensors)) > 1
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in READS or to_host or by_mask:
            self.waits[name] += 1
        return func(*args, **kwargs)


def _target(kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> set[str]:
    return {str(kwargs["device"])} if kwargs.get("device") is not None and tensors else set()


@pytest.mark.parametrize("inner", sorted(INNER))
@pytest.mark.parametrize("build", [mlp, conv_net])
def test_no_step_reads_a_value(build: Any, inner: str) -> None:
    kind, kwargs = INNER[inner]
    toy, twin = build(CONFIG), build(CONFIG)
    optimizer = QASSO(toy, kind, schedule=schedule(), **kwargs)
    other = QASSO(twin, kind, schedule=schedule(), **kwargs)
    seen = set()
    for step in range(23):
        seen.add(optimizer.stage)
        for each in (toy, twin):
            each.model.zero_grad()
            backward(each, step)
        with Watch() as ours:
            optimizer.step()
        with Watch() as alone:
            other.inner.step()
        # torch's Adam reads its step counters, which are CPU tensors; nothing else may read anything.
        assert ours.waits == alone.waits, (step, ours.waits)
        assert inner != "sgd" or not ours.waits
    assert seen == {"warmup", "projection", "joint", "cooldown"}
    assert len(toy.zero_groups()) == optimizer.target_groups


def test_the_watch_sees_what_it_must() -> None:
    x = torch.arange(4.0)
    for wait in (
        lambda: float(x[0]),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: torch.masked_select(x, x > 1),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: bool((x > 1).any()),
        lambda: x.to("meta"),
    ):
        with Watch() as watch:
            wait()
        assert watch.waits, wait


def test_a_full_schedule_runs_where_values_do_not_exist() -> None:
    """On the meta device every read of a value and every copy to the host raises."""
    toy = mlp(CONFIG)
    toy.model.to("meta")
    for slot, name in zip(toy.slots, ("0", "0", "2", "2"), strict=True):
        module = toy.model.get_submodule(name)
        slot.parameter = original(module) if slot.parameter.dim() == 2 else module.bias  # type: ignore[assignment]
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(23):
        for parameter in toy.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    assert optimizer.finished
    assert optimizer.pruned.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):  # what torch says of a meta tensor asked for values
        optimizer.pruned_groups()


def deep(layers: int) -> Toy:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
    toy = Toy(model, CONFIG)
    for number in range(layers):
        quantize_weight(toy, str(number))
        quantize_input(toy, str(number), 3.0, signed=True, numel=8)
        toy.add_family([(original(model[number]), 0), (model[number].bias, 0)], 8)
    return toy


def test_the_number_of_operations_does_not_grow_with_small_layers() -> None:
    counts = {}
    for layers in (4, 40):
        toy = deep(layers)
        optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(), lr=0.1)
        worst: Counter[str] = Counter()
        for _ in range(21):
            for parameter in toy.model.parameters():
                parameter.grad = torch.ones_like(parameter)
            with Watch() as alone:
                optimizer.inner.step()
            stage = optimizer.stage
            with Watch() as ours:
                optimizer.step()
            launches = {key: count for key, count in (ours.all - alone.all).items() if key not in FREE}
            worst[stage] = max(worst[stage], sum(launches.values()))
        counts[layers] = worst
    assert counts[4] == counts[40]
    assert max(counts[40].values()) < 300


# Views and allocations launch nothing.
FREE = {
    *("detach", "view", "_unsafe_view", "split_with_sizes", "split", "slice", "select", "unsqueeze", "alias", "expand"),
    *("unbind", "empty", "t", "permute", "squeeze", "as_strided", "empty_like", "new_empty"),
}
