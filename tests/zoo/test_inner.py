"""What counts as a head or a width, and that none which has to stay is called something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from tests.zoo.families import every
from tests.zoo.inner import Inner, inner_dimensions

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    """Four heads; ``mixing`` normalizes the queries of all of them together."""

    def __init__(self, mixing: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH) if mixing else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.norm(self.q(x)), self.k(x), self.v(x)))
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(found.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """A hidden width that is plain, normalized, or normalized and added to itself."""

    def __init__(self, width: str) -> None:
        super().__init__()
        self.up, self.down, self.width = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH), width
        self.norm = nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.up(x))
        if self.width == "normalized":
            hidden = self.norm(hidden)
        elif self.width == "added":
            hidden = hidden + self.norm(hidden)
        return self.down(hidden)


class Layer(nn.Module):
    """A layer of a transformer, with its norms before attention and MLP or behind them."""

    def __init__(self, mixing: bool, width: str, before: bool) -> None:
        super().__init__()
        self.attention, self.mlp, self.before = Attention(mixing), Mlp(width), before
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if not self.before:
            x = self.first(x + self.attention(x))
            return self.second(x + self.mlp(x))
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Net(nn.Module):
    """Two layers, with a projection from stream to stream between them, and a classifier or none."""

    def __init__(self, mixing: bool = False, width: str = "plain", before: bool = True, head: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(False, "plain", before), Layer(mixing, width, before)])
        self.between = nn.ModuleList([nn.Identity(), nn.Linear(WIDTH, WIDTH)])
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 5) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for project, layer in zip(self.between, self.layers, strict=True):
            x = layer(project(x))
        return self.head(x)


def inner_of(model: nn.Module, example: Any, **config: Any) -> Inner:
    prepared = geta.prepare(model, example, geta.CompressionConfig(**{"weight_bits": None, **config}))
    return inner_dimensions(prepared.graph)


def of_layer(index: int, *parts: str) -> list[str]:
    return sorted(f"layers.{index}.{part}" for part in parts)


HEAD_PARTS = ("attention.q.weight[0]", "attention.k.weight[0]", "attention.v.weight[0]", "attention.o.weight[1]")
WIDTH_PARTS = ("mlp.up.weight[0]", "mlp.down.weight[1]")
EVERY = sorted([*of_layer(0, *HEAD_PARTS, *WIDTH_PARTS), *of_layer(1, *HEAD_PARTS, *WIDTH_PARTS)])
TOKENS = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_projections_of_the_stream_are_neither_heads_nor_widths(before: bool, head: bool) -> None:
    found = inner_of(Net(before=before, head=head), TOKENS)
    assert (found.covered, found.missing) == (EVERY, {})
    assert found.outer["between.1.weight[0]"] == found.outer["between.1.weight[1]"] == ["stream"]


@pytest.mark.parametrize("head", [True, False])
def test_heads_that_a_norm_mixes_are_not_covered(head: bool) -> None:
    found = inner_of(Net(mixing=True, head=head), TOKENS)
    assert sorted(found.missing) == of_layer(1, *HEAD_PARTS)
    assert found.missing["layers.1.attention.q.weight[0]"] == ["enters a LayerNorm or RMSNorm reduction"]
    assert found.covered == sorted(set(EVERY) - found.missing.keys())


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("width", ["normalized", "added"])
def test_widths_that_a_norm_mixes_are_not_covered(width: str, head: bool) -> None:
    found = inner_of(Net(width=width, head=head), TOKENS)
    assert sorted(found.missing) == of_layer(1, *WIDTH_PARTS)
    assert found.covered == sorted(set(EVERY) - found.missing.keys())


def test_heads_that_only_go_all_together_are_not_covered() -> None:
    class Shared(Attention):
        """The queries of each head meet its keys and those of the next."""

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
            found = nn.functional.scaled_dot_product_attention(q, k + k.roll(1, 1), v)
            return self.o(found.transpose(1, 2).flatten(2))

    model = Net()
    model.layers[1].attention = Shared(False)
    found = inner_of(model, TOKENS)
    assert found.missing == {key: ["all of its indices go together"] for key in of_layer(1, *HEAD_PARTS)}


# Of each family: what one layer has by its definition (heads are counted at each projection that makes or reads
# them, widths at both ends) times the number of layers of its configuration; a module, a parameter in it that is
# pinned, and how many of its dimensions are pinned with it.
COUNTS: dict[str, tuple[int, str, str, int]] = {
    # q, k, v, o; up, down.
    "transformers/bert": (2 * 6, "bert.encoder.layer.1.attention.", "self.query.weight", 4),
    # q, k, v, o; gate, up, down.
    "transformers/llama": (2 * 7, "model.layers.0.mlp.", "up_proj.weight", 3),
    "transformers/olmo2": (2 * 7, "layers.1.self_attn.", "v_proj.weight", 4),
    "transformers/qwen3": (2 * 7, "layers.0.self_attn.", "k_proj.weight", 4),
    # q, k and v in one, o; up, down.
    "transformers/gpt2": (2 * 4, "transformer.h.0.attn.", "c_attn.weight", 2),
    "transformers/vit": (2 * 6, "layers.0.attention.", "v_proj.weight", 4),
    # q, k, v, o; gate and up in one, down.
    "transformers/mixtral": (2 * 6, "layers.1.self_attn.", "q_proj.weight", 4),
}


def prepared_inner(name: str, **config: Any) -> Inner:
    family = every()[name]
    return inner_of(family.model(), family.example(), **{**family.config, **config})


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("name", COUNTS)
def test_every_head_and_width_of_known_families_counts_and_what_is_pinned_is_missed(name: str) -> None:
    count, module, parameter, lost = COUNTS[name]
    found = prepared_inner(name)
    assert len(found.covered) + len(found.missing) == count, sorted([*found.covered, *found.missing])
    again = prepared_inner(name, pin=(module + parameter,))
    missing = {part for part in again.missing if part.startswith(module)}
    assert len(missing) == lost
    assert {part.partition("[")[0] for part in missing} >= {module + parameter}
    assert set(again.missing) == missing | set(found.missing)
    assert set(again.covered) == set(found.covered) - missing
