"""Forwards that take another way while they train, and modules that keep something aside while they do not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import geta_core as geta
from tests.geta_core.graph.nets import choose, gap, image, prepared64, rows, run


class Base(nn.Module):
    """A branch over sizes that stand in the code, so that the class cannot be cut, and what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, 2, bias=False), nn.BatchNorm2d(8)
        self.hidden, self.back, self.head = nn.Linear(8 * 16, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.hidden(F.gelu(self.norm(self.stem(x))).view(-1, 8 * 16)))
        return self.head(y + self.way(self.back(y)))

    def way(self, y: Tensor) -> Tensor:
        raise NotImplementedError  # abstract: each net below has a way of its own


class Masked(Base):
    """Stochastic depth: an example's branch is left out, or divided by the share of those that are not."""

    def way(self, y: Tensor) -> Tensor:
        return y * y.new_empty((y.shape[0], 1)).bernoulli_(0.5).div_(0.5) if self.training else y


class Drawn(Base):
    """The same, from uniform numbers."""

    def way(self, y: Tensor) -> Tensor:
        return y.div(0.5) * (0.5 + torch.rand(y.shape[0], 1, dtype=y.dtype)).floor_() if self.training else y


class Other(Base):
    """Nothing random: another function."""

    def way(self, y: Tensor) -> Tensor:
        return torch.tanh(y) if self.training else y


class Step(torch.autograd.Function):
    """Rounds; gradients pass."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return grad


class OwnBackward(Base):
    """A backward pass of its own, while it trains alone."""

    def way(self, y: Tensor) -> Tensor:
        return Step.apply(y) if self.training else y.round()


class Smooth(torch.autograd.Function):
    """A backward pass that is the derivative, written by hand."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * (1 - x.tanh() ** 2)


class OwnDerivative(Base):
    """What the graph loses, it has by itself."""

    def way(self, y: Tensor) -> Tensor:
        return Smooth.apply(y)


class OwnGradient(Base):
    """What the graph loses cannot be had otherwise, in either mode."""

    def way(self, y: Tensor) -> Tensor:
        return Step.apply(y)


def finished(kind: type[nn.Module]) -> tuple[geta.Prepared, geta.Compressed, Tensor]:
    torch.manual_seed(0)
    prepared = prepared64(kind(), image())
    prepared.zero_(choose(prepared, 1))
    return prepared, geta.finish(prepared), image().double()


@pytest.mark.parametrize("kind", [Masked, Drawn, Other, OwnBackward, OwnDerivative])
def test_eval_mode_is_right(kind: type[Base]) -> None:
    prepared, compressed, x = finished(kind)
    assert isinstance(compressed.model, fx.GraphModule)
    assert prepared.zero_groups() >= 2
    for count in (1, 2, 5):
        assert gap(run(prepared.model, rows(x, count)), run(compressed.model, rows(x, count))) <= 1e-10


def test_a_hand_written_derivative_is_not_lost_in_a_graph() -> None:
    assert finished(OwnDerivative)[1].report.train_refusal == ""
    with pytest.raises(geta.PruningError, match="would lose the backward pass of Step"):
        finished(OwnGradient)


def test_a_random_mask_is_drawn_while_training() -> None:
    prepared, compressed, x = finished(Masked)
    assert compressed.report.train_refusal == ""
    results = []
    for model in (prepared.model, compressed.model):
        torch.manual_seed(3)
        results.append([run(model, rows(x, 5), train=True) for _ in range(4)])
    for expected, found in zip(*results, strict=True):
        assert gap(expected, found) <= 1e-10
    assert gap(results[1][0], results[1][1]) > 1e-6


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Drawn, "are random in eval mode"), (Other, "differ from the model's"), (OwnBackward, "backward pass of Step")],
)
def test_where_train_mode_is_that_of_eval_the_report_says_why(kind: type[Base], reason: str) -> None:
    prepared, compressed, x = finished(kind)
    assert reason in compressed.report.train_refusal
    # Batch norm still follows: its statistics are those of the batch.
    model = prepared.model.eval()
    assert isinstance(model, Base)
    model.norm.train()
    assert gap([model(x).detach()], run(compressed.model, x, train=True)) <= 1e-10


class Keeping(nn.Module):
    """Attention whose table of biases is computed once in eval mode, and dropped by ``train()``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj, self.head = (nn.Linear(a, b) for a, b in ((3, 8), (8, 24), (8, 8), (8, 5)))
        self.table = nn.Parameter(torch.randn(4, 7))
        self.register_buffer("places", torch.arange(4)[:, None] - torch.arange(4)[None] + 3, persistent=False)
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def biases(self) -> Tensor:
        if self.training:
            return self.table[:, self.places]
        if "here" not in self.kept:
            self.kept["here"] = self.table[:, self.places]
        return self.kept["here"]

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x.flatten(2).transpose(1, 2)[:, :4])
        q, k, v = self.qkv(y).unflatten(2, (3, -1, 2)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT + self.biases()).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(self.proj(mixed).mean(1))


def test_what_a_module_keeps_aside_follows_the_cut() -> None:
    prepared, compressed, x = finished(Keeping)
    assert compressed.report.native
    assert ("table", 0) in compressed.keep
    model = compressed.model
    assert isinstance(model, Keeping)
    assert model.table.shape[0] < 4
    assert gap(run(prepared.model, x), [model(x).detach()]) <= 1e-10
    assert model.kept["here"].shape[0] == model.table.shape[0]
