"""Prunes groups a few at a time while a model trains: saliency, then progressive forgetting (HESSO, arXiv:2409.09085).

The pruning stage has P periods. At the start of each the groups of the lowest score become redundant, as many as make
up K in the end; with L steps in the period, step k = 0 .. L - 1 is

    x <- (L - k - 1) / (L - k) (x - lr g)    in the redundant groups,    x <- x - lr g    in the others,

so that the redundant ones fall in equal parts to exactly zero with the period's last step, and stay there. Where a
relative BOPs is the target, K is planned anew in each period from the scores of then, and the last one meets it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import geta_core as geta
from baselines.helpers.scores import Criterion, GroupScores
from geta_core.planning import fewest_removed
from geta_core.qasso.schedule import Schedule
from geta_core.qasso.selection import Selector


class Budget:
    """A relative BOPs that the removed groups shall give.

    Args:
        cost: relative BOPs for removed groups, bool [groups] on the CPU.
        target: to be met.
    """

    def __init__(self, cost: Callable[[Tensor], float], target: float) -> None:
        self.cost, self.target = cost, target

    def nearer(self, now: Tensor, then: Tensor) -> bool:
        """Whether the removed groups of now meet the target better than those of then would, which are more."""
        before, after = self.cost(now.cpu()), self.cost(then.cpu())
        return before <= self.target or abs(before - self.target) <= abs(after - self.target)

    def share(self, selector: Selector, score: Tensor, pruned: Tensor, parts: int) -> int:
        """Return how many groups shall be pruned after this period, of which ``parts`` are left, this one included."""
        now = int(pruned.sum())

        def cost(count: int) -> float:
            return self.cost((selector.choose(score, pruned, count) | pruned).cpu())

        wanted = fewest_removed(cost, self.target, now, selector.num_groups)
        if wanted > now and abs(cost(wanted - 1) - self.target) < abs(cost(wanted) - self.target):
            wanted -= 1
        return now + -(-(wanted - now) // parts)


class GroupPruner:
    """Which groups go when, and the zeros that stay; an optimizer calls it around its step.

    Args:
        prepared: a prepared model; ``config.sparsity`` of its groups go, under ``min_kept`` and ``divisible_by``.
        criterion: what decides which.
        schedule: the joint stage is when groups go.
        budget: decides how many instead of the sparsity.
    """

    def __init__(
        self, prepared: geta.Prepared, criterion: Criterion, schedule: Schedule, budget: Budget | None = None
    ) -> None:
        config = prepared.config
        self.schedule, self._budget, self._slots = schedule, budget, prepared.slots
        self._scores = GroupScores(prepared, criterion)
        self._selector = Selector(
            prepared.family,
            sparsity=config.sparsity if budget is None else 1.0,
            min_kept=config.min_kept,
            divisible_by=config.divisible_by,
        )
        if self._selector.target and not schedule.joint:
            raise geta.ScheduleError("groups are to be pruned, but the pruning stage has no step; lengthen it")
        device = prepared.slots[0].parameter.device if prepared.slots else torch.device("cpu")
        self._selector.to(device)
        self._pruned = torch.zeros(prepared.num_prunable, dtype=torch.bool, device=device)
        self._redundant = torch.zeros_like(self._pruned)
        self._index = [torch.where(s.group < 0, prepared.num_prunable, s.group).to(device) for s in self._slots]

    @property
    def target_groups(self) -> int:
        """How many groups go where no budget decides."""
        return self._selector.target

    @property
    def pruned(self) -> Tensor:
        """Which groups are zero and stay so, bool [groups]."""
        return self._pruned.clone()

    def before_step(self, step: int) -> None:
        """Choose groups where a period starts; gradients must be there, parameters not yet moved."""
        stage, at = self.schedule.stage_at(step)
        if stage not in ("warmup", "joint") or not self._selector.target:
            return
        self._scores.note()
        if stage == "warmup" or self.schedule.period_at(at).step != 0:
            return
        period, periods = self.schedule.period_at(at).period, self.schedule.pruning_periods
        score = self._scores.score(~self._pruned)
        if self._budget is None:
            share = self._selector.share(period, periods)
        else:
            share = self._budget.share(self._selector, score, self._pruned, periods - period)
        self._redundant = self._selector.choose(score, self._pruned, share)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Let redundant groups fall and hold pruned ones at zero."""
        stage, at = self.schedule.stage_at(step)
        if stage == "warmup" or not self._selector.target:
            return
        keep = torch.ones(len(self._pruned) + 1, device=self._pruned.device)
        if stage == "joint":
            place = self.schedule.period_at(at)
            left = place.length - place.step
            keep[:-1].masked_fill_(self._redundant, (left - 1) / left)
            if left == 1:
                self._pruned |= self._redundant
                self._redundant = torch.zeros_like(self._redundant)
        keep[:-1].masked_fill_(self._pruned, 0.0)
        for slot, index in zip(self._slots, self._index, strict=True):
            shape = [-1 if dim == slot.dim else 1 for dim in range(slot.parameter.dim())]
            slot.parameter.mul_(keep.index_select(0, index).view(shape).to(slot.parameter.dtype))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors that a resumed run needs."""
        return {"pruned": self._pruned, "redundant": self._redundant, "scores": self._scores.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state from :meth:`state_dict`."""
        device = self._pruned.device
        self._pruned, self._redundant = (state[key].to(device).clone() for key in ("pruned", "redundant"))
        self._scores.load_state_dict(state["scores"])
