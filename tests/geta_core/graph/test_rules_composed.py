"""Operations that are a short formula of others, on the real operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import geta_core as geta
from tests.geta_core.graph.nets import assert_sound

FLOAT = geta.CompressionConfig(weight_bits=None)


class Gated(nn.Module):
    """A gated linear unit between two layers; the gate stands along the channels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.linear = nn.Conv1d(3, 12, 3, padding=1), nn.Linear(3, 12)
        self.after_conv, self.after_linear = nn.Conv1d(6, 4, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "conv":
            return self.after_conv(F.glu(self.conv(x), dim=1))
        return self.after_linear(F.glu(self.linear(x.transpose(1, 2))))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_the_halves_of_a_gated_unit_go_together(kind: str) -> None:
    torch.manual_seed(0)
    prepared = geta.prepare(Gated(kind).double(), torch.randn(2, 3, 8, dtype=torch.float64), FLOAT)
    free = [group for group in prepared.graph.groups if group.pinned is None]
    assert len(free) == 6
    for group in free:
        rows = {member.indices for member in group.members if member.name == f"{kind}.weight" and member.dim == 0}
        (indices,) = rows
        assert len(indices) == 2
        assert indices[1] - indices[0] == 6
    assert_sound(prepared, torch.randn(2, 3, 8, dtype=torch.float64))


def test_a_weight_normalization_keeps_its_channels() -> None:
    """A direction of zero would be 0 / 0, in the model that is zeroed and trained on."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3)
    )
    prepared = geta.prepare(model.double(), torch.randn(2, 4, dtype=torch.float64), FLOAT)
    reasons = [group.pinned for group in prepared.graph.groups]
    assert sum(reason is not None and "weight normalization" in reason for reason in reasons) == 12
    assert geta.finish(prepared).report.max_error64 == 0


def test_a_fresh_tensor_takes_no_labels() -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y * y.new_empty(1).fill_(2.0))

    x = torch.randn(2, 4, dtype=torch.float64)
    prepared = geta.prepare(Noise().double(), x, FLOAT)
    assert sum(group.pinned is None for group in prepared.graph.groups) == 8
    assert_sound(prepared, x)
