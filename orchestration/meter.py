"""Means over many steps, summed on the device so that no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from orchestration.world import World


class Meter:
    """Running means of named scalars."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            value = value.detach().to(torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def means(self) -> dict[str, float]:
        """Return the means; waits for the device once."""
        if not self._sums:
            return {}
        values = (torch.stack(list(self._sums.values())) / self._count).tolist()
        return dict(zip(self._sums, values, strict=True))

    def agree_(self, world: World) -> None:
        """Replace the sums by their means over the workers, so that each goes on from what all have seen."""
        world.average_(list(self._sums.values()))

    def clear(self) -> None:
        """Start anew."""
        self._sums, self._count = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return sums and count."""
        return {"sums": {name: value.clone() for name, value in self._sums.items()}, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a saved state."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._count = state["count"]
