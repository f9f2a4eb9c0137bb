"""A net for the committed report: a residual stream, an inner convolution, a norm that pins, and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Three convolutions with batch norm and residual, a layer norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 2, 3, padding=1)
        self.outer = nn.Conv2d(2, 4, 1)
        self.wide = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.stem(x)))
        y = y + self.outer(torch.relu(self.inner(y)))
        return self.head(self.norm(self.wide(y.mean((2, 3)))))
