"""The contract of every method, so that one loop, step budget, data set and accountant serve all of them.

A method of your own is a dataclass with these three methods; name it ``method=package.module:Name``. Its fields become
the keys ``method.<field>``, checked against their types (see ``baselines.schema``).

A method may have more, each of which is used where it is there:

* class attributes, all of which the built-in methods have (a test says so): ``PAPER`` (where it is published),
  ``CONTROLS`` (what it decides), both one line for `geta methods`, and ``SEARCH`` (see ``baselines.search``), the space
  in which its fields are tuned; the fields' own defaults are the paper's;
* ``DECIDES``: which fields another one decides where it is given, as ``{"budget_bops": ("sparsity", ...)}``: a recipe's
  values of those are then left out;
* ``steps(total_steps)``: how many optimizer steps it takes of the run's budget (``planned_steps``);
* ``matched(model, example_inputs)``: the same method with its knobs set so that it meets ``match_bops``
  (``baselines.matching``: ``Matching`` searches sparsity and bit widths, ``Targeted`` is for methods that meet a target
  by themselves).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

import geta_core as geta
from baselines.search import Space


class Method(Protocol):
    """One way to make a model smaller while, or after, it is trained."""

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Change the float model in place so that it can be trained.

        Args:
            model: on its device, in training mode.
            example_inputs: as ``geta.prepare`` takes them.
            calibration: batches of inputs formed like ``example_inputs``.
        """

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the optimizer of the whole run.

        Args:
            prepared: what ``prepare`` returned.
            total_steps: the budget, equal for every method that is compared.
            optimizer_class: class in torch.optim that takes the steps.
            keywords: its arguments, among them ``lr``.
        """

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Return the finished model and its accounting; called once, after the last step."""


@dataclass(frozen=True)
class About:
    """What a list of methods says about one of them."""

    paper: str
    controls: str
    search: Space


def about(method: Any) -> About:
    """Return the class attributes of a method, empty where it has none."""
    return About(getattr(method, "PAPER", ""), getattr(method, "CONTROLS", ""), getattr(method, "SEARCH", {}))


def planned_steps(method: Method, total_steps: int) -> int:
    """Return how many optimizer steps a method takes of a budget; without ``steps`` of its own, all of them."""
    own = getattr(method, "steps", None)
    return total_steps if own is None else int(own(total_steps))


def matched(method: Method, model: nn.Module, example_inputs: Any) -> Method:
    """Return a method whose knobs are set so that it meets its ``match_bops``; the method itself where it asks nothing.

    Args:
        method: as configured.
        model: the float model, on its device; left as it is.
        example_inputs: as ``geta.prepare`` takes them.

    Raises:
        ConfigError: when the target cannot be met, with the range that can.
    """
    own = getattr(method, "matched", None)
    return method if own is None else cast(Method, own(model, example_inputs))
