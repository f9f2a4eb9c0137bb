"""The graph that is stored computes what the model computes in eval mode, also where training takes another way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta


class Jitter(nn.Module):
    """Drops whole examples while it trains, as stochastic depth does, and widens its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        if self.training:
            kept = y.new_empty(y.shape[0], 1).bernoulli_(0.5)
            y = y * kept / 0.5
        return self.second(y)


class Twisted(nn.Module):
    """Another result in train mode, with a value that torch.export can trace in neither mode's stead."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2.0 if self.training else 1.0)


@pytest.mark.parametrize("build", [Jitter, Twisted])
@pytest.mark.parametrize("inputs", [None, (4, 8)])
def test_a_forward_with_another_way_while_training(
    build: type[nn.Module], inputs: tuple[int, int] | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    prepared = geta.prepare(build(), torch.randn(4, 4), geta.CompressionConfig(activation_bits=inputs))
    if prepared.num_prunable:
        prepared.zero_([0, 1, 2])
    compressed = geta.finish(prepared)
    compressed.save(tmp_path / "artifact")
    loaded = geta.load(tmp_path / "artifact")
    x = torch.randn(5, 4)
    assert torch.equal(loaded(x), compressed.model(x))
    # Normalizations still follow the mode; weights can be trained on.
    loaded.train()
    loaded(x).sum().backward()
    assert any(parameter.grad is not None for parameter in loaded.parameters())


def test_what_has_no_graph_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that computes something else is never written."""
    compressed = geta.finish(geta.prepare(Jitter(), torch.randn(4, 4)))
    compressed.model.first.forward = lambda x: torch.randn(x.shape[0], 12)  # type: ignore[union-attr,method-assign]
    with pytest.raises(geta.ArtifactError, match=r"the model has no graph that can be stored: .* differ .* by"):
        compressed.save(tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
