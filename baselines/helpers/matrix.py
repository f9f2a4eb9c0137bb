"""A layer as a matrix product: output row = weight row times column of the layer's (unfolded) input.

Layer-wise methods need it: the second derivative of a layer's squared output error is the Gram matrix of the columns.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 1 << 24
"""Elements of columns that are made at a time."""


@dataclass(frozen=True)
class MatrixLayer:
    """A weight of a layer, seen as [groups, rows, columns].

    Attributes:
        module: Linear, Conv1d/2d/3d or Hugging Face's Conv1D.
        shape: of the weight as it is stored.
        groups: the convolution's, else 1.
        transposed: whether the weight is stored [in, out].
    """

    module: nn.Module
    shape: torch.Size
    groups: int
    transposed: bool

    @classmethod
    def of(cls, module: nn.Module, shape: torch.Size) -> MatrixLayer | None:
        """Return the view of a module's weight, or None where its output is not such a product of its input."""
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return cls(module, shape, module.groups, False)
        if isinstance(module, nn.Linear):
            return cls(module, shape, 1, False)
        conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
        return cls(module, shape, 1, True) if conv1d is not None and isinstance(module, conv1d) else None

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight, or what is shaped like it, as [groups, rows, columns]."""
        if self.transposed:
            return weight.T.unsqueeze(0)
        return weight.reshape(self.groups, self.shape[0] // self.groups, -1)

    def weight(self, matrix: Tensor) -> Tensor:
        """Return [groups, rows, columns] in the shape in which the weight is stored."""
        return matrix[0].T if self.transposed else matrix.reshape(self.shape)

    def per_row(self, values: Tensor) -> Tensor:
        """Return what broadcasts against the weight (a step size) as [groups, rows, 1]."""
        return self.matrix(values.expand(self.shape))[:, :, :1]

    def columns(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the columns of an input batch, [groups, columns, samples], a block of examples at a time."""
        if not isinstance(self.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            yield x.reshape(-1, x.shape[-1]).T.unsqueeze(0)
            return
        dims = len(self.module.kernel_size)
        x = x.unsqueeze(0) if x.dim() == dims + 1 else x
        window = math.prod(self.module.kernel_size)
        step = max(1, BLOCK // max(1, x[0].numel() * window))
        for start in range(0, len(x), step):
            yield _unfolded(self.module, x[start : start + step], dims)

    @property
    def input_dim(self) -> int:
        """Dimension of the stored weight that the layer's input channels are on."""
        return 0 if self.transposed else 1

    def columns_of(self, indices: Tensor) -> Tensor:
        """Return which columns belong to indices of the weight's input dimension, long [indices, window]."""
        window = 1 if self.transposed else math.prod(self.shape[2:])
        return indices.unsqueeze(1) * window + torch.arange(window)


def _unfolded(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, dims: int) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, list(module._reversed_padding_repeated_twice), mode=mode)
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # [examples, channels, places ..., window ...] to [groups, channels * window, examples * places]
    x = x.unflatten(1, (module.groups, -1))
    places, window = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    x = x.permute(1, 2, *window, 0, *places)
    return x.flatten(2 + dims).flatten(1, 1 + dims)
