"""Running statistics of batch normalisations, taken anew from data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from baselines.helpers.calling import call
from geta_core.errors import GetaError


@torch.no_grad()
def settle_statistics_(model: nn.Module, batches: Sequence[Any]) -> None:
    """Set the running statistics of a model's batch normalisations to the means over these batches, in place.

    Args:
        model: runs in the mode that it is in; normalisations in evaluation mode learn nothing.
        batches: inputs of the model.

    Raises:
        GetaError: when the forward fails.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    try:
        for batch in batches:
            call(model, batch)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise GetaError(f"the model's forward fails on the task's images ({type(error).__name__}: {text})") from error
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def resettle_statistics_(model: nn.Module, batches: Sequence[Any]) -> None:
    """Do the same to a trained model: everything but the normalisations runs as in evaluation."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for module in modes:
        if isinstance(module, _BatchNorm):
            module.train()
    try:
        settle_statistics_(model, batches)
    finally:
        for module, training in modes.items():
            module.training = training
