"""Finishing at the edges: repeated example tensors, layers without a channel left, inexact groups, GPT-2's heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from tests.geta_core.compressing import batch, build, some_groups
from tests.geta_core.test_finish import hugging_face


class Difference(nn.Module):
    """Two inputs, and a literal width that the module's own class cannot lose."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3)

    def part(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x).view(x.shape[0], 4, 4)).reshape(x.shape[0], -1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.second(self.part(x) - self.part(y))


def test_one_tensor_in_two_places_of_the_example_is_two_inputs() -> None:
    x = torch.randn(2, 4)
    prepared = geta.prepare(Difference(), (x, x), geta.CompressionConfig(weight_bits=None))
    prepared.zero_([0])
    compressed = geta.finish(prepared)
    assert not compressed.report.native
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    expected = prepared.model.eval()(first, second)
    torch.testing.assert_close(compressed.model(first, second), expected, rtol=0, atol=1e-5)


def test_a_layer_without_a_channel_left_is_refused() -> None:
    prepared = geta.prepare(build("resnet"), batch("resnet"), geta.CompressionConfig())
    prepared.zero_(torch.nonzero(prepared.family == 0).flatten().tolist())
    with pytest.raises(geta.PruningError, match=r"every one of the 4 groups of .*conv1\.weight.* is zero"):
        geta.finish(prepared)


def test_inexact_groups_are_counted() -> None:
    config = geta.CompressionConfig(prune_normalized=True)
    prepared = geta.prepare(build("vit"), batch("vit"), config)
    prepared.zero_([group.id for group in prepared.graph.groups if group.inexact and group.pinned is None][:5])
    assert geta.finish(prepared).report.inexact == 5


@pytest.mark.needs("transformers")
def test_gpt2_without_some_heads_is_still_gpt2() -> None:
    model, inputs = hugging_face("gpt2")
    prepared = geta.prepare(model, inputs, geta.CompressionConfig(weight_bits=(4, 8), initial_bits=8))
    prepared.zero_(some_groups(prepared))
    compressed = geta.finish(prepared)
    assert compressed.report.native
    assert type(compressed.model) is type(hugging_face("gpt2")[0])
    assert compressed.model.get_submodule("transformer.h.0.attn.c_attn").nf == 48


def test_a_calibration_batch_of_another_shape() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(geta.GetaError, match="the model's forward fails on a calibration batch: RuntimeError"):
        geta.prepare(nn.Linear(4, 3), x, geta.CompressionConfig(activation_bits=(4, 8)), calibration=[x, x[:, :3]])


def test_only_modules_and_names_can_be_pinned() -> None:
    with pytest.raises(geta.ConfigError, match="pin: must hold modules and names, but got 3"):
        geta.prepare(nn.Linear(4, 3), torch.randn(2, 4), geta.CompressionConfig(pin=(3,)))  # type: ignore[arg-type]
