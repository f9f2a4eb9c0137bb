"""The proof runs the model in float64: what a float32 model makes and needs in its forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta


class Masked(nn.Module):
    """A net whose forward makes a new tensor from the type of another, as attention masks do."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.middle = nn.Linear(4, 8), nn.Linear(8, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.middle(self.enter(x)))


def floored(x: Tensor) -> Tensor:
    """The lowest number of the input's type, in a tensor of the default type."""
    return x * (torch.tensor(torch.finfo(x.dtype).min) < 0)


def single(x: Tensor) -> Tensor:
    """A kernel that takes float32 only."""
    if x.dtype != torch.float32:
        raise RuntimeError("expected Float")
    return x.relu()


def prepared(forward: Callable[[Tensor], Tensor]) -> geta.Prepared:
    model = Masked(forward)
    made = geta.prepare(model, torch.randn(2, 4), geta.CompressionConfig(weight_bits=None))
    made.zero_([0, 3])
    return made


def test_new_tensors_follow_the_type_of_the_proof() -> None:
    compressed = geta.finish(prepared(floored))
    assert compressed.report.removed == 2
    assert compressed.report.max_error64 <= 1e-10
    assert torch.get_default_dtype() == torch.float32
    assert compressed.model(torch.randn(3, 4)).dtype == torch.float32


def test_a_model_that_cannot_run_in_float64_is_refused() -> None:
    made = prepared(single)
    with pytest.raises(geta.PruningError, match="forward fails there: RuntimeError: expected Float; it must take any"):
        geta.finish(made)
    assert torch.get_default_dtype() == torch.float32
