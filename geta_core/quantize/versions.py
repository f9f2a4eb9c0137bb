"""What tells that a tensor was changed in place after something was made from it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

CHANGED = (
    "a tensor that the backward pass needs was changed in place after the forward pass; call backward() before "
    "optimizer.step(), and use no in-place operation on what a quantized layer received"
)


def versions(parts: Iterable[Tensor | None]) -> tuple[int, ...]:
    """Return the numbers of in-place changes so far; tensors of inference mode have none, and count as unchanged."""
    return tuple(0 if part.is_inference() else part._version for part in parts if part is not None)
