"""QST-B and CLIP-Q: masks and grids against NumPy, and what each method promises."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.clip_q import ClipQ, clip_mask
from baselines.helpers.masks import MaskedQuantizer, kept_levels, largest_mask, masked, masks_of, refit_step
from baselines.helpers.unstructured import Phases, cubic, phases_of
from baselines.qst_b import QstB
from geta_core.errors import ConfigError
from tests.baselines.nets import STEPS, accuracy, batches, resumed, start, train

METHODS: list[Any] = [QstB(weight_sparsity=0.6, weight_bits=3), ClipQ(clip=0.6, weight_bits=3)]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 80), st.floats(0, 0.99), st.integers(0, 10_000))
def test_clipping_against_numpy(size: int, share: float, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    kept = np.zeros(size, dtype=bool)
    for side in (weight > 0, weight < 0):
        places = np.flatnonzero(side)
        nearest = places[np.argsort(np.abs(weight[places]), kind="stable")]
        kept[nearest[int(share * len(places) + 1e-6) :]] = True
    assert np.array_equal(clip_mask(torch.from_numpy(weight), share).numpy(), kept)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10_000))
def test_the_largest_of_all_layers_against_numpy(first: int, second: int, share: float, seed: int) -> None:
    # Few different values, so that there are ties.
    values = np.random.default_rng(seed).integers(0, 5, size=first + second).astype(np.float32)
    count = int(share * len(values))
    kept = np.zeros(len(values), dtype=bool)
    kept[np.argsort(-values, kind="stable")[:count]] = True
    masks = largest_mask([torch.from_numpy(values[:first]), torch.from_numpy(values[first:])], count)
    assert np.array_equal(torch.cat(masks).numpy(), kept)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fitting_a_grid_lowers_the_error_to_the_best_there_is(bits: int) -> None:
    magnitude = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)).abs()
    mask = magnitude > 0.5
    kept = magnitude[mask].numpy()

    def error(step: float) -> float:
        level = np.clip(np.round(kept / step), 1, 2 ** (bits - 1) - 1)
        return float(((kept - step * level) ** 2).sum())

    start_step = magnitude.max() / (2 ** (bits - 1) - 1)
    errors = [error(float(refit_step(magnitude, mask, start_step, bits, rounds))) for rounds in range(8)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
    if bits == 2:  # one level: its best place is the mean
        assert float(refit_step(magnitude, mask, start_step, 2)) == pytest.approx(kept.mean())


def test_masked_weights_are_zero_and_kept_ones_never_are() -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    mask, step = weight.abs() > 0.2, torch.tensor(0.7)
    value = masked(weight, mask, step)
    assert (value[~mask] == 0).all()
    assert torch.equal(value[mask], torch.copysign(weight[mask].abs().clamp(min=0.7), weight[mask]))
    assert (kept_levels(weight.abs(), step, 3) >= 1).all() and (kept_levels(weight.abs(), step, 3) <= 3).all()


def test_gradients_reach_masked_weights() -> None:
    prepared, _ = start(METHODS[0])
    each = masks_of(prepared)[1]
    each.masking = each.quantizing = True
    each.mask.view(-1)[::2] = False
    layer = prepared.model[4]  # type: ignore[index]
    (layer.weight * torch.arange(layer.weight.numel()).view_as(layer.weight)).sum().backward()
    (weight,) = [site.parameter for site in prepared.sites if site.module is layer and site.kind == "weight"]
    assert weight is not None and weight.grad is not None
    assert (layer.weight == 0).view(-1)[::2].all() and not (layer.weight == 0).view(-1)[1::2].any()
    inside = weight.detach().abs() <= each.inner.q_m.detach()
    expected = torch.arange(layer.weight.numel()).view_as(weight).float() * inside
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_at_the_asked_sparsity_and_bits(method: Any) -> None:
    prepared, optimizer = start(method)
    train(prepared, optimizer, batches(STEPS))
    compressed = method.finish(prepared, [])
    report = compressed.report
    assert accuracy(compressed.model) > 0.6
    assert report.weight_bits == 3
    density = sum(row.weights * row.density for row in report.layers) / sum(row.weights for row in report.layers)
    assert abs((1 - density) / 0.6 - 1) < 0.02, "zeros are those of the mask, to a weight of each sign and layer"
    assert report.relative_bops == pytest.approx(3 * 32 / 1024)
    assert report.relative_sparse_bops < 0.6 * report.relative_bops
    for name, parameter in compressed.model.named_parameters():
        if parameter.dim() > 1:
            assert len(parameter.unique()) <= 2**3 - 1, name
    assert not any(isinstance(module, MaskedQuantizer) for module in prepared.model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_finishing_changes_nothing_that_was_trained(method: Any) -> None:
    prepared, optimizer = start(method)
    train(prepared, optimizer, batches(STEPS))
    prepared.model.eval()
    images = batches(1)[0][0]
    trained = prepared.model(images).detach()
    compressed = method.finish(prepared, [])
    assert torch.allclose(compressed.model(images), trained, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [3, 25, STEPS - 5])
def test_a_resumed_run_is_the_same_bit_for_bit(method: Any, at: int) -> None:
    whole, again = resumed(method, at)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_phases() -> None:
    assert phases_of(0.1, 0.5, 100) == Phases(10, 60)
    assert phases_of(0.9, 0.9, 100) == Phases(90, 100)
    assert [Phases(10, 60).share(clock) for clock in (10, 60, 90)] == [0.0, 1.0, 1.0]
    assert Phases(10, 10).share(10) == 1.0
    assert cubic(0.5) == 0.875


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError):
        QstB(weight_bits=1).prepare(torch.nn.Linear(2, 2), torch.randn(2, 2), [])
