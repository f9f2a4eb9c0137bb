"""The contract of every method, so that one loop, step budget, data set and accountant serve all of them.

A method of your own is a dataclass with these three methods; name it ``method=package.module:Name``. Its fields become
the keys ``method.<field>``, checked against their types (see ``baselines.schema``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

import geta_core as geta


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
