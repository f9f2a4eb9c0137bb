"""How much each group matters: criteria of structured pruning over the rows that a group zeroes.

* ``hesso``: HESSO's five criteria (arXiv:2409.09085), as the engine computes them, of parameters and
  gradient.
* ``magnitude``: root mean square of the group's parameters (the norm of arXiv:1608.08710, over the square root of the
  size, so that groups of different layers can be compared).
* ``taylor``: (sum over the group of gradient times parameter)^2, averaged over the steps since the last choice
  (Molchanov et al., arXiv:1906.10771, first order).
* ``random``: numbers drawn once.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

import geta_core as geta
from geta_core.qasso.saliency import SaliencyWeights, score_groups
from geta_core.qasso.segments import RowSum

Criterion = Literal["hesso", "magnitude", "taylor", "random"]


class GroupScores:
    """Scores of a prepared model's groups by one criterion.

    Args:
        prepared: a prepared model.
        criterion: see above.
    """

    def __init__(self, prepared: geta.Prepared, criterion: Criterion) -> None:
        self.criterion = criterion
        self._slots = prepared.slots
        self._count = prepared.num_prunable
        device = self._slots[0].parameter.device if self._slots else torch.device("cpu")
        none = torch.zeros(0, dtype=torch.long)
        numbers = torch.cat([none, *(torch.where(s.group < 0, self._count, s.group).cpu() for s in self._slots)])
        self._sum = RowSum(numbers, self._count + 1, device)
        sizes = [
            torch.full((len(s.group),), float(s.parameter.numel() // len(s.group)), device=device) for s in self._slots
        ]
        self.size = self._total(sizes)
        self._random = torch.rand(self._count, dtype=torch.float64)
        if dist.is_available() and dist.is_initialized():
            shared = self._random.to(device)
            dist.broadcast(shared, 0)
            self._random = shared.cpu()
        self._random = self._random.to(device)
        self._taylor = torch.zeros_like(self._random)

    def note(self) -> None:
        """Take the gradients of this step into account; called before the optimizer's step, whatever the stage."""
        if self.criterion == "taylor":
            self._taylor += self._products()[1].square()

    def score(self, open_groups: Tensor) -> Tensor:
        """Return the score of each group, float64 [groups]; the gradients are those of this step.

        Args:
            open_groups: bool [groups], False for groups that were pruned before.
        """
        if self.criterion == "random":
            return self._random
        if self.criterion == "taylor":
            found, self._taylor = self._taylor, torch.zeros_like(self._taylor)
            return found
        products = self._products()
        if self.criterion == "magnitude":
            return (products[0] / self.size).sqrt()
        return score_groups(products, self.size, open_groups, SaliencyWeights())

    def _products(self) -> Tensor:
        """Return <x, x>, <x, g> and <g, g> over the rows of each group, float64 [3, groups]."""
        rows = []
        for slot in self._slots:
            x = _rows(slot.parameter.detach(), slot.dim)
            gradient = slot.parameter.grad
            g = torch.zeros_like(x) if gradient is None else _rows(gradient.detach(), slot.dim)
            rows.append(torch.stack([(x * x).sum(1), (x * g).sum(1), (g * g).sum(1)]))
        return self._total(rows, 3)

    def _total(self, parts: list[Tensor], kinds: int = 1) -> Tensor:
        if not parts:
            return torch.zeros((kinds, 0) if kinds > 1 else 0, dtype=torch.float64)
        rows = torch.cat(parts, -1).view(kinds, -1)
        found = self._sum(rows)[:, :-1]
        return found if kinds > 1 else found[0]

    def state_dict(self) -> dict[str, Any]:
        """Return what later scores depend on."""
        return {"random": self._random.clone(), "taylor": self._taylor.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state from :meth:`state_dict`."""
        device = self._taylor.device
        self._random, self._taylor = state["random"].to(device).clone(), state["taylor"].to(device).clone()


def _rows(value: Tensor, dim: int) -> Tensor:
    return value.movedim(dim, 0).flatten(1) if value.dim() > 1 else value.unsqueeze(1)
