"""Ranges of the layers' inputs, from calibration batches and never from the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geta_core.errors import GetaError
from geta_core.quantize.quantizer import RangeObserver
from geta_core.quantize.sites import QuantSite

Batch = TypeVar("Batch")
NEVER_RAN = "no floating-point tensor reached it in calibration"


def calibrate_(
    model: nn.Module,
    sites: Iterable[QuantSite],
    batches: Iterable[Batch],
    run: Callable[[nn.Module, Batch], object],
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Run the batches through the model and set the grid of every input site from what it saw, in place.

    The model runs in the mode it is in (train before training, eval for post-training quantization), without
    gradients, with float inputs and quantized weights; its buffers and the random state are restored. A
    site gets q_m = max|x|, the unsigned grid if no value was negative, the number of bits it has, and numel = elements
    per example, an example being an index of the first dimension of the batch's first tensor. A site that no
    floating-point tensor reached gets a reason and is otherwise left as it is. Weight sites are not touched.

    Args:
        model: the model that the sites belong to.
        sites: sites of any kind.
        batches: at least one.
        run: calls the model on one batch.
        process_group: where given, what was seen is reduced over its ranks, each of which must make this call.

    Raises:
        GetaError: no batch, or a layer input that is not finite.
    """
    inputs = [site for site in sites if site.kind == "input"]
    observers = [RangeObserver() for _ in inputs]
    examples = 0
    try:
        for site, observer in zip(inputs, observers, strict=True):
            site.quantizer.observer = observer
        with _unchanged(model), torch.no_grad():
            for batch in batches:
                run(model, batch)
                examples += _examples(batch)
    finally:
        for site in inputs:
            site.quantizer.observer = None
    if examples == 0:
        raise GetaError("calibration needs at least one batch that is not empty, but got none")
    if inputs:
        _set_(inputs, *_reduced(inputs, observers, examples, process_group))


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Run the model in its own mode; afterwards its buffers and the random state are what they were.

    A model about to be trained must be seen in train mode: with the initial running statistics of an untrained
    batch norm, eval mode shows activations many times smaller than those that training will see.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _examples(batch: object) -> int:
    """Return the size of the first dimension of the first tensor in the batch, or 1."""
    first = next(_tensors(batch), None)
    return 1 if first is None or first.dim() == 0 else first.shape[0]


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _reduced(
    sites: Sequence[QuantSite],
    observers: Sequence[RangeObserver],
    examples: int,
    process_group: dist.ProcessGroup | None,
) -> tuple[list[list[float]], list[int]]:
    """Return (-min, max) per site, -inf where nothing was seen, and elements per example per site."""
    device = sites[0].quantizer.q_m.device
    unseen = torch.full((), -torch.inf, dtype=torch.float64, device=device)
    ranges = torch.stack(
        [
            unseen if bound is None else sign * bound.to(unseen)
            for observer in observers
            for sign, bound in ((-1, observer.low), (1, observer.high))
        ]
    )
    counts = torch.tensor([*(observer.elements for observer in observers), examples], device=device)
    if process_group is not None:
        dist.all_reduce(ranges, dist.ReduceOp.MAX, group=process_group)
        dist.all_reduce(counts, dist.ReduceOp.SUM, group=process_group)
    *elements, total = counts.tolist()
    return ranges.view(-1, 2).tolist(), [-(-count // total) for count in elements]


def _set_(sites: Sequence[QuantSite], ranges: Sequence[Sequence[float]], numels: Sequence[int]) -> None:
    for site, (negative, high), numel in zip(sites, ranges, numels, strict=True):
        if numel == 0:
            site.reason = NEVER_RAN
            continue
        largest = max(negative, high)
        if not largest < torch.inf or negative != negative or high != high:
            where = site.module_name or "the model"
            raise GetaError(f"the input of {where} must be finite, but calibration saw [{-negative}, {high}]")
        quantizer = site.quantizer
        bits = quantizer.bits()
        quantizer.signed = negative > 0
        with torch.no_grad():
            quantizer.q_m.fill_(largest or 1.0)
        quantizer.set_bits_(bits)
        site.numel = numel
        site.reason = None
