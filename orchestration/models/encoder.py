"""Classifiers around torch's own transformer encoder layer (Vaswani et al., arXiv:1706.03762).

`encoder` reads token ids, `row_encoder` reads images, one token per pixel row. Differs from the paper: encoder only,
learned positions, and the logits come from the mean over the tokens. Matrices are Xavier uniform, as torch sets them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestration.models.common import require
from orchestration.models.inputs import ImageInput, TokenInput
from orchestration.models.options import Count
from orchestration.models.registry import register


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of the encoder; `tokens` is the longest sequence."""

    width: int
    depth: int
    num_heads: int
    hidden: int
    tokens: int


class EncoderClassifier(nn.Module):
    """Positions, encoder layers, mean over the tokens, linear classifier.

    Args:
        embed: turns the input into tokens [B, N, width], N at most `sizes.tokens`.
        sizes: of the encoder.
        num_classes: logits.
        norm_first: pre-norm instead of the paper's post-norm.
    """

    def __init__(self, embed: nn.Module, sizes: EncoderSizes, num_classes: int, norm_first: bool) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(torch.empty(1, sizes.tokens, sizes.width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                sizes.width, sizes.num_heads, sizes.hidden, dropout=0.0, batch_first=True, norm_first=norm_first
            )
            for _ in range(sizes.depth)
        )
        # Post-norm layers already end in a norm.
        self.norm = nn.LayerNorm(sizes.width) if norm_first else nn.Identity()
        self.head = nn.Linear(sizes.width, num_classes)
        nn.init.normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Token ids [B, N] or images [B, C, H, W] to logits [B, num_classes]."""
        x = self.embed(x)
        x = x + self.position[:, : x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class RowEmbed(nn.Module):
    """Images [B, C, H, W] to one token per pixel row, [B, H, width]."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(features, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows as tokens."""
        out: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return out


def _sizes(model: str, width: int, depth: int, num_heads: int, tokens: int) -> EncoderSizes:
    require(model, num_heads=(width % num_heads == 0, f"must divide the width {width}, got {num_heads}"))
    return EncoderSizes(width, depth, num_heads, 4 * width, tokens)


@register(
    "encoder",
    summary="token classifier around nn.TransformerEncoderLayer",
    inputs=TokenInput(32),
    small={"vocab_size": 50, "sequence_length": 12, "width": 32, "depth": 2},
)
def encoder(
    *,
    num_classes: Count = 2,
    vocab_size: Count = 1000,
    sequence_length: Count = 128,
    width: Count = 128,
    depth: Count = 4,
    num_heads: Count = 4,
    norm_first: bool = False,
) -> nn.Module:
    """Build it; the feed-forward layers are 4 `width` wide, sequences have at most `sequence_length` tokens."""
    sizes = _sizes("encoder", width, depth, num_heads, sequence_length)
    embed = nn.Embedding(vocab_size, width)
    nn.init.normal_(embed.weight, std=width**-0.5)
    return EncoderClassifier(embed, sizes, num_classes, norm_first)


@register(
    "row_encoder",
    summary="image classifier around nn.TransformerEncoderLayer, one token per pixel row",
    inputs=ImageInput(8),
    small={"width": 32, "depth": 2},
)
def row_encoder(
    *,
    num_classes: Count = 10,
    in_channels: Count = 1,
    image_size: Count = 8,
    width: Count = 64,
    depth: Count = 2,
    num_heads: Count = 4,
    norm_first: bool = False,
) -> nn.Module:
    """Build it; the feed-forward layers are 4 `width` wide."""
    sizes = _sizes("row_encoder", width, depth, num_heads, image_size)
    return EncoderClassifier(RowEmbed(in_channels * image_size, width), sizes, num_classes, norm_first)
