"""A net that is slow while a file exists, so that a test has time to interrupt its training."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

GATE = "GETA_TEST_GATE"
"""Environment variable that names the file."""


class Slow(nn.Sequential):
    """A small net; each training step takes a second longer while the file exists."""

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if training and Path(os.environ.get(GATE, "/nonexistent")).exists():
            time.sleep(1)
        out: Tensor = super().forward(x)
        return out


def slow(num_classes: int = 10) -> nn.Module:
    """Return the net for the digits images."""
    return Slow(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
