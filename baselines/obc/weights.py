"""ExactOBS on single weights: every layer loses the same share of them, distributed over its rows by cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from baselines.helpers.hessian import damped_inverse, grams
from baselines.helpers.matrix import MatrixLayer
from baselines.helpers.surgeon import choose_removals, removal_costs, remove


@torch.no_grad()
def prune_weights_(model: nn.Module, batches: Sequence[Any], sparsity: float, damping: float) -> None:
    """Set a share of the weights of every layer to zero, in place, the others making up for them.

    Args:
        model: without quantizers.
        batches: calibration inputs.
        sparsity: share of each layer's weights, rounded down per group of a convolution.
        damping: of the Hessian.
    """
    for module, gram in grams(model, matrix_layers(model), batches).items():
        if gram.empty:
            continue
        layer, parameter = gram.layer, module.get_parameter("weight")
        weight, inverse = layer.matrix(parameter.detach()).double(), damped_inverse(gram.xx, damping)
        pruned = [_pruned(rows, own, sparsity) for rows, own in zip(weight, inverse, strict=True)]
        parameter.copy_(layer.weight(torch.stack(pruned)))


def matrix_layers(model: nn.Module) -> dict[nn.Module, MatrixLayer]:
    """Return every layer of a float model that is a matrix product of its input."""
    found: dict[nn.Module, MatrixLayer] = {}
    for module in model.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        layer = None if weight is None else MatrixLayer.of(module, weight.shape)
        if layer is not None:
            found[module] = layer
    return found


def _pruned(weight: Tensor, inverse: Tensor, sparsity: float) -> Tensor:
    order, costs = removal_costs(weight, inverse)
    lost = choose_removals(costs, int(sparsity * weight.numel())).to(order.device)
    places = torch.arange(weight.shape[1], device=order.device)
    chosen = torch.zeros_like(weight, dtype=torch.bool).scatter(1, order, places < lost.unsqueeze(1))
    return remove(weight, inverse, chosen)
