"""Layers as matrix products, their Gram matrices, and AdaRound, against the layers themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.hessian import Gram, damped_inverse, grams
from baselines.helpers.matrix import MatrixLayer
from baselines.helpers.post_training import in_order
from baselines.helpers.rounding import PUBLISHED_LAMBDA, AdaRound, adaround, initial, output_error, rectified_sigmoid
from baselines.ptq_only import PtqOnly

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "linear on tokens": (nn.Linear(5, 4), (3, 7, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 7, 6)),
    "conv2d, groups and dilation": (nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding="same"), (2, 4, 7, 6)),
    "conv2d, depthwise, reflected": (nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"), (2, 4, 5, 6)),
    "conv3d": (nn.Conv3d(2, 3, (2, 3, 1), padding=(0, 1, 0)), (2, 2, 4, 5, 3)),
}


def product(module: Any, x: Tensor) -> Tensor:
    """The layer's output [rows, samples] by its matrix; rows of all groups in order."""
    layer = MatrixLayer.of(module, module.weight.shape)
    assert layer is not None
    assert torch.equal(layer.weight(layer.matrix(module.weight)), module.weight)
    columns = torch.cat(list(layer.columns(x)), -1)
    return (layer.matrix(module.weight) @ columns).flatten(0, 1)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_matrix_times_its_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape = copy.deepcopy(LAYERS[name][0]).double(), LAYERS[name][1]
    x = torch.randn(shape, dtype=torch.float64)
    output = module(x) - module(torch.zeros_like(x))  # without the bias
    channel = output.dim() - 1 if isinstance(module, nn.Linear) else 1
    wanted = output.movedim(channel, 0).flatten(1)
    assert torch.allclose(product(module, x), wanted, atol=1e-12)
    monkeypatch.setattr("baselines.helpers.matrix.BLOCK", 1)  # an example at a time
    assert torch.allclose(product(module, x), wanted, atol=1e-12)


def test_what_is_no_such_product_has_no_matrix() -> None:
    modules: list[Any] = [nn.ConvTranspose2d(2, 3, 3), nn.BatchNorm2d(3), nn.Embedding(4, 5)]
    for module in modules:
        assert MatrixLayer.of(module, module.weight.shape) is None


@pytest.mark.parametrize("name", LAYERS)
def test_the_error_of_an_output_follows_from_the_gram_matrices(name: str) -> None:
    module, shape = copy.deepcopy(LAYERS[name][0]).double(), LAYERS[name][1]
    weight: Any = module.weight
    layer = MatrixLayer.of(module, weight.shape)
    assert layer is not None
    x, z = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    gram = Gram(layer)
    gram.add(x[:1], z[:1])
    gram.add(x[1:], z[1:])
    changed: Any = copy.deepcopy(module)
    changed.weight.data += 0.1 * torch.randn(weight.shape, dtype=torch.float64)
    difference = product(changed, x) - product(module, z)
    constant = (layer.matrix(weight) * (layer.matrix(weight) @ gram_of(layer, z).xx)).sum(-1)
    found = output_error(layer.matrix(changed.weight), layer.matrix(weight), gram.xx, gram.zx) + constant
    assert torch.allclose(found.flatten(), difference.square().mean(1), rtol=1e-10)


def gram_of(layer: MatrixLayer, x: Tensor) -> Gram:
    gram = Gram(layer)
    gram.add(x)
    return gram


def test_the_inverse_is_damped_and_leaves_unused_columns_alone() -> None:
    x = torch.randn(4, 30, dtype=torch.float64)
    x[2] = 0
    h = x @ x.T / 30
    mean = h.diagonal().sum() / 3
    inverse = damped_inverse(h, 0.01)
    used = torch.tensor([0, 1, 3])
    expected = (h[used][:, used] + 0.01 * mean * torch.eye(3, dtype=torch.float64)).inverse()
    assert torch.allclose(inverse[used][:, used], expected, rtol=1e-10)
    assert float(inverse[2, 2]) == pytest.approx(1 / float(mean)) and not inverse[2, used].any()


def test_inputs_are_those_that_layers_see_in_both_models() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().train()
    other = copy.deepcopy(model)
    first: Any = other[0]
    first.weight.data += 1.0
    batches = [torch.randn(5, 3, dtype=torch.float64) for _ in range(3)]
    layer = MatrixLayer.of(model[2], torch.Size((2, 4)))
    assert layer is not None
    gram = grams(model, {model[2]: layer}, batches, (other, {model[2]: other[2]}))[model[2]]
    x, z = (torch.relu(net[0](torch.cat(batches))).detach() for net in (model, other))
    assert torch.allclose(gram.xx[0], x.T @ x / 15) and torch.allclose(gram.zx[0], z.T @ x / 15)
    assert model.training and not model[2]._forward_pre_hooks and not other[2]._forward_pre_hooks


def test_the_rectified_sigmoid_is_the_papers() -> None:
    v = torch.linspace(-6, 6, 101, dtype=torch.float64)
    wanted = torch.clamp(1 / (1 + torch.exp(-v)) * 1.2 - 0.1, 0, 1)
    assert torch.allclose(rectified_sigmoid(v), wanted, atol=1e-15)
    assert rectified_sigmoid(torch.tensor(-6.0)) == 0 and rectified_sigmoid(torch.tensor(6.0)) == 1
    fraction = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    assert torch.allclose(rectified_sigmoid(initial(fraction)), fraction, atol=1e-12)


def test_beta_falls_from_20_to_2_after_the_warm_start() -> None:
    settings = AdaRound(iterations=100)
    assert settings.beta(19) is None and settings.beta(20) == 20.0
    betas = [settings.beta(i) or 0.0 for i in range(20, 100)]
    assert betas == sorted(betas, reverse=True) and 2 < betas[-1] < 2.5


def correlated(columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = mixing @ torch.randn(columns, 200, generator=generator, dtype=torch.float64)
    return torch.randn(1, 6, columns, generator=generator, dtype=torch.float64), (x @ x.T / 200).unsqueeze(0)


@pytest.mark.parametrize("seed", range(3))
def test_adaround_beats_rounding_to_nearest(seed: int) -> None:
    weight, xx = correlated(24, seed)
    step = weight.abs().amax(-1, keepdim=True) / 7
    levels = adaround(weight, step, 7, xx, xx, AdaRound(iterations=800))
    nearest = (weight / step).round().clamp(-7, 7)
    assert torch.equal(levels, levels.round()) and float(levels.abs().max()) <= 7
    assert float((levels - weight / step).abs().max()) < 1, "up or down, never further"
    base = (weight * (weight @ xx)).sum(-1)
    ours, theirs = (output_error(each * step, weight, xx, xx) + base for each in (levels, nearest))
    assert bool((ours <= theirs + 1e-12).all())
    assert float(ours.sum()) < 0.75 * float(theirs.sum()), (ours, theirs)


def test_one_relative_lambda_fits_outputs_of_any_size_and_the_papers_does_not() -> None:
    weight, xx = correlated(24, 0)
    step = weight.abs().amax(-1, keepdim=True) / 7
    published = AdaRound(iterations=200, regularization=PUBLISHED_LAMBDA, relative=False)

    def gain(size: float, settings: AdaRound) -> tuple[Tensor, float]:
        """The rounding where all outputs are ``size`` times as large, and its error over that of nearest."""
        levels = adaround(weight, step, 7, xx * size**2, xx * size**2, settings)
        gaps = [each * step - weight for each in (levels, (weight / step).round())]
        ours, nearest = (float(((gap @ xx) * gap).sum()) for gap in gaps)
        return levels, ours / nearest

    small, large = (gain(size, AdaRound(iterations=200)) for size in (0.01, 30.0))
    assert small[1] == pytest.approx(large[1], rel=0.05) and small[1] < 0.6
    assert gain(0.01, published)[1] == pytest.approx(small[1], abs=0.1), "where the paper's lambda fits, so does ours"
    assert gain(30.0, published)[1] > 0.9, "where it is too weak, what it finds is not whole"


def test_adaround_is_near_the_best_of_all_roundings() -> None:
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 8).unsqueeze(1)
    best, ours, nearest = 0.0, 0.0, 0.0
    for seed in range(5):
        weight, xx = correlated(8, seed)
        step = weight.abs().amax(-1, keepdim=True) / 3
        base = (weight * (weight @ xx)).sum()
        candidates = ((weight / step).floor()[0] + every).clamp(-3, 3)
        errors = output_error(candidates * step, weight.expand_as(candidates), xx, xx)
        best += float(errors.amin(0).sum() + base)
        levels = adaround(weight, step, 3, xx, xx, AdaRound(iterations=800))
        ours += float(output_error(levels * step, weight, xx, xx).sum() + base)
        nearest += float(output_error((weight / step).round().clamp(-3, 3) * step, weight, xx, xx).sum() + base)
    assert best <= ours * (1 + 1e-9) and ours - best < 0.4 * (nearest - best), (best, ours, nearest)


def test_zero_weights_stay_zero_where_inputs_are_dead() -> None:
    weight, xx = correlated(6, 1)
    weight[0, 2] = 0
    weight[..., 4] = 0
    xx[:, 4], xx[:, :, 4] = 0, 0
    levels = adaround(weight, torch.full((1, 6, 1), 0.3).double(), 7, xx, xx, AdaRound(iterations=50))
    assert not levels[0, 2].any() and not levels[..., 4].any()


@pytest.mark.parametrize("rounding", ["adaround", "obq"])
def test_the_models_output_is_nearer_than_with_rounding_to_nearest(rounding: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 5),
    )  # fmt: skip
    batches = [torch.randn(32, 1, 8, 8).cumsum(-1) for _ in range(4)]
    held_out = torch.randn(64, 1, 8, 8).cumsum(-1)
    wanted = model(held_out).detach()
    errors = {}
    for kind in ("nearest", rounding):
        method = PtqOnly(weight_bits=3, activation_bits=None, rounding=kind, iterations=800, train=False)
        prepared = method.prepare(copy.deepcopy(model), batches[0], batches)
        compressed = method.finish(prepared, batches)
        assert compressed.report.weight_bits == 3
        errors[kind] = (compressed.model(held_out) - wanted).square().mean().item()
    assert errors[rounding] < 0.7 * errors["nearest"], errors


def test_layers_without_a_matrix_are_named_and_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))
    batches = [torch.randn(8, 1, 8, 8)]
    method = PtqOnly(rounding="adaround", iterations=5, train=False)
    with pytest.warns(UserWarning, match=r"rounded to nearest.*2\.weight"):
        report = method.finish(method.prepare(model, batches[0], batches), batches).report
    assert report.weight_bits == 8


def test_layers_are_rounded_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.first(x).relu())
            return y

    x = torch.randn(4, 3)
    prepared = geta.prepare(Backwards(), x, geta.CompressionConfig(sparsity=0.0, weight_bits=(8, 8)))
    assert [site.name for site in in_order(prepared, [x])] == ["first.weight", "last.weight"]
