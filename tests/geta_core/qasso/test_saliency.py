"""The five criteria against NumPy, on groups whose members are spread over several parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from geta_core.config import CompressionConfig
from geta_core.errors import ConfigError
from geta_core.qasso.forgetting import PrunableRows
from geta_core.qasso.saliency import SaliencyWeights, score_groups
from tests.geta_core.qasso.toy import Toy, conv_net

WEIGHTS = SaliencyWeights(magnitude=0.3, average_magnitude=0.1, cosine=0.25, taylor1=0.15, taylor2=0.2)


def by_numpy(
    x: list[np.ndarray], g: list[np.ndarray], open_groups: np.ndarray, weights: tuple[float, ...]
) -> np.ndarray:
    scores = np.zeros((5, len(x)))
    for number, (own, move) in enumerate(zip(x, g, strict=True)):
        norm, inner = np.linalg.norm(own), float(own @ move)
        length = norm * np.linalg.norm(move)
        scores[:, number] = norm, norm / own.size, (inner / length if length else 0) + 1, abs(inner), 0.5 * inner**2
    scores[:, ~open_groups] = 0
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    return (np.array(weights)[:, None] * scores / np.where(norms == 0, 1, norms)).sum(0)


def members(toy: Toy, values: dict[int, np.ndarray]) -> list[np.ndarray]:
    groups: list[list[np.ndarray]] = [[] for _ in range(toy.num_prunable)]
    for slot in toy.slots:
        rows = np.moveaxis(values[id(slot.parameter)], slot.dim, 0)
        for number, row in zip(slot.group.tolist(), rows, strict=True):
            groups[number].append(np.ravel(row))
    return [np.concatenate(parts) for parts in groups]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_equal_numpy(dtype: torch.dtype) -> None:
    toy = conv_net(CompressionConfig(weight_bits=None), dtype)
    for parameter in toy.model.parameters():
        nn.init.normal_(parameter)
    rows = PrunableRows(toy.slots, {}, toy.num_prunable)
    rows.assign({id(slot.parameter): 0 for slot in toy.slots})
    rows.refresh()
    before = {id(p): p.detach().double().numpy().copy() for p in toy.model.parameters()}
    rows.remember()
    with torch.no_grad():
        for parameter in toy.model.parameters():
            parameter.sub_(torch.randn_like(parameter) * 0.1)
    rows.gather()
    moved = {id(p): before[id(p)] - p.detach().double().numpy() for p in toy.model.parameters()}
    open_groups = torch.ones(toy.num_prunable, dtype=torch.bool)
    open_groups[[2, 9]] = False
    found = score_groups(rows.group_sums([None]), rows.group_size, open_groups, WEIGHTS)
    wanted = by_numpy(members(toy, before), members(toy, moved), open_groups.numpy(), (0.3, 0.1, 0.25, 0.15, 0.2))
    # In float32 the difference of two weights near 1 has a relative error of 1e-7 / 0.1, and sums of it a little more.
    assert np.allclose(found.numpy(), wanted, rtol=1e-12 if dtype == torch.float64 else 3e-5, atol=0)


def test_zero_rows_and_zero_movement_give_finite_scores() -> None:
    sums = torch.zeros(3, 4, dtype=torch.float64)
    sums[0, 1:] = 1.0
    found = score_groups(sums, torch.full((4,), 5.0).double(), torch.ones(4, dtype=torch.bool), SaliencyWeights())
    third, half = 0.2 / 3**0.5, 0.2 / 2
    assert torch.allclose(found, torch.tensor([half] + [2 * third + half] * 3, dtype=torch.float64), rtol=1e-15)


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        SaliencyWeights(magnitude=-1, taylor2=float("nan"))
    assert len(caught.value.faults) == 2
    with pytest.raises(ConfigError, match="at least one"):
        SaliencyWeights(magnitude=0, average_magnitude=0, cosine=0, taylor1=0, taylor2=0)
