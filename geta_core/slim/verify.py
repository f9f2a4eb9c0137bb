"""Proof that two models compute the same: in float64 to rounding, in float32 as far as its rounding allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from geta_core.copying import copied
from geta_core.graph.capture import ExampleInputs
from geta_core.quantize import Quantizer
from geta_core.quantize.attach import INPUT_QUANTIZER
from geta_core.slim.graph_module import batch_size

TOLERANCE_64 = 1e-10
"""Largest difference in float64, relative to the largest output (at least 1)."""


@dataclass(frozen=True)
class Difference:
    """Largest difference between two models' outputs, relative to max(1, largest output)."""

    eval_mode: float
    train_mode: float | None
    """None where dropout makes two runs differ by chance."""

    @property
    def worst(self) -> float:
        """The larger of the two; infinite where a result is not a number."""
        found = max(self.eval_mode, self.train_mode or 0.0)
        return found if found == found else float("inf")

    def larger(self, other: Difference) -> Difference:
        """The larger of both in each mode."""
        trained = [gap for gap in (self.train_mode, other.train_mode) if gap is not None]
        return Difference(max(self.eval_mode, other.eval_mode), max(trained) if trained else None)


def with_batch(inputs: ExampleInputs, count: int) -> ExampleInputs:
    """The example with ``count`` rows: rows are repeated in turn."""
    size = batch_size(inputs)

    def rows(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != size:
            return tensor
        return tensor.index_select(0, torch.arange(count, device=tensor.device) % size)

    return inputs.map(rows)


def as_double(inputs: ExampleInputs) -> ExampleInputs:
    """Floating inputs in float64."""
    return inputs.map(lambda t: t.double() if t.is_floating_point() else t)


@contextmanager
def new_tensors(dtype: torch.dtype) -> Iterator[None]:
    """Give floating tensors that a forward makes without naming a type this one, which the model computes in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Unrounded(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def unrounded() -> Iterator[None]:
    """Let a forward stay in float64 where it asks for float32: many a norm computes in single precision by itself.

    Then even sums that such a norm takes over fewer channels agree to rounding in float64.
    """
    with _Unrounded():  # type: ignore[no-untyped-call]
        yield


def outputs(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """Every tensor that the model returns."""
    found: Any = inputs.run(model)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def difference(reference: nn.Module, other: nn.Module, inputs: ExampleInputs, *, train: bool = True) -> Difference:
    """Compare on two batch sizes, in eval mode and (without dropout) in train mode; neither model is changed."""
    sizes = (batch_size(inputs), batch_size(inputs) + 1)
    batches = [with_batch(inputs, size) for size in sizes]
    with torch.no_grad():
        reference.eval()
        other.eval()
        evaluated = max(_largest(reference, other, batch) for batch in batches)
        trained = None
        if train:
            copies = copied(reference), copied(other)
            for model in copies:
                model.train()
            with torch.random.fork_rng(devices=_devices()):
                trained = max(_largest(*copies, batch) for batch in batches)
            # Copies are dear: only what differs is asked whether it does so by chance.
            if trained > TOLERANCE_64 and is_random(reference, batches[1]):
                trained = None
    return Difference(evaluated, trained)


def without_input_quantizers(model: nn.Module) -> nn.Module:
    """A copy whose layer inputs are not quantized: their rounding would hide all but large differences."""
    model = copied(model)
    if isinstance(model, fx.GraphModule):
        for node in list(model.graph.nodes):
            if node.target is torch.ops.geta.fake_quantize.default:
                node.replace_all_uses_with(node.args[0])
                model.graph.erase_node(node)
        model.recompile()
        return model
    for module in model.modules():
        if isinstance(getattr(module, INPUT_QUANTIZER, None), Quantizer):
            setattr(module, INPUT_QUANTIZER, nn.Identity())
    return model


def _devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def is_random(model: nn.Module, inputs: ExampleInputs) -> bool:
    """Whether train mode gives another result under another seed (dropout, stochastic depth)."""
    results = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=_devices()):
            torch.manual_seed(seed)
            results.append(outputs(copied(model).train(), inputs))
    return any(not torch.equal(a, b) for a, b in zip(*results, strict=True))


def _largest(reference: nn.Module, other: nn.Module, batch: ExampleInputs) -> float:
    worst = 0.0
    expected, found = outputs(reference, batch), outputs(other, batch)
    if len(expected) != len(found):
        return float("inf")
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            scale = max(1.0, float(a.abs().max()))
            gap = float((a.double() - b.double()).abs().max()) / scale
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst
