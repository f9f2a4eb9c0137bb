"""BERT (Devlin et al., arXiv:1810.04805) with random weights, for benchmarks: 12 layers, 768 wide, 12 heads, 3072.

Post-norm, gelu, separate query, key and value projections, tanh pooler on the first token, a linear classifier.
Differs: one token type and a padding mask as booleans. `bert_layers` is the stack of layers alone, without embeddings
and pooler, since those are neither pruned nor quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestration.models.common import require, trunc_init_
from orchestration.models.inputs import FeatureInput, TokenInput
from orchestration.models.options import Count, Share
from orchestration.models.registry import register


@dataclass(frozen=True)
class BertSizes:
    """Sizes of the layers and the dropout probability, which is the same everywhere."""

    width: int
    num_heads: int
    hidden: int
    dropout: float


class BertAttention(nn.Module):
    """Self-attention with three projections on [B, N, C]."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.head_dim = sizes.width // sizes.num_heads
        self.dropout = sizes.dropout
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)
        self.output = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attended tokens; `mask` [B, 1, 1, N] is true where a token may be seen."""
        out: Tensor = nn.functional.scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(self.key(x)),
            self._split(self.value(x)),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out = self.output(out.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, H D] to [B, H, N, D]."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)


class BertLayer(nn.Module):
    """Attention and feed-forward, each with dropout, addition and norm behind it."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.attention = BertAttention(sizes)
        self.attention_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.intermediate = nn.Linear(sizes.width, sizes.hidden)
        self.output = nn.Linear(sizes.hidden, sizes.width)
        self.output_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the layer's output [B, N, C]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        y = self.output(nn.functional.gelu(self.intermediate(x)))
        out: Tensor = self.output_norm(x + self.dropout(y))
        return out


class BertLayers(nn.Module):
    """Hidden states [B, N, width] through `depth` layers."""

    def __init__(self, sizes: BertSizes, depth: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(sizes) for _ in range(depth))
        trunc_init_(self)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the hidden states after the last layer."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class BertClassifier(nn.Module):
    """Token ids [B, N] to logits [B, num_classes].

    Args:
        sizes: of the layers.
        depth: number of layers.
        vocab_size: number of token ids.
        sequence_length: longest sequence (position embeddings).
        num_classes: logits.
    """

    def __init__(self, sizes: BertSizes, depth: int, vocab_size: int, sequence_length: int, num_classes: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, sizes.width)
        self.position_embeddings = nn.Embedding(sequence_length, sizes.width)
        self.token_type_embeddings = nn.Embedding(2, sizes.width)
        self.embedding_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.dropout = nn.Dropout(sizes.dropout)
        self.encoder = BertLayers(sizes, depth)
        self.pooler = nn.Linear(sizes.width, sizes.width)
        self.classifier = nn.Linear(sizes.width, num_classes)
        trunc_init_(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the logits; `attention_mask` [B, N] is nonzero where a token is real."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x = self.dropout(self.embedding_norm(x + self.token_type_embeddings.weight[0]))
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.encoder(x, mask)
        logits: Tensor = self.classifier(self.dropout(torch.tanh(self.pooler(x[:, 0]))))
        return logits


def _heads(model: str, width: int, num_heads: int) -> None:
    require(model, num_heads=(width % num_heads == 0, f"must divide the width {width}, got {num_heads}"))


@register(
    "bert",
    summary="BERT-base classifier with random weights, 109.5M parameters",
    inputs=TokenInput(128),
    small={
        "vocab_size": 60,
        "sequence_length": 12,
        "width": 32,
        "depth": 2,
        "num_heads": 4,
        "feedforward": 64,
        "dropout": 0.0,
    },
)
def bert(
    *,
    num_classes: Count = 2,
    vocab_size: Count = 30522,
    sequence_length: Count = 512,
    width: Count = 768,
    depth: Count = 12,
    num_heads: Count = 12,
    feedforward: Count = 3072,
    dropout: Share = 0.1,
) -> nn.Module:
    """Build it; `num_heads` must divide `width`."""
    _heads("bert", width, num_heads)
    sizes = BertSizes(width, num_heads, feedforward, dropout)
    return BertClassifier(sizes, depth, vocab_size, sequence_length, num_classes)


@register(
    "bert_layers",
    summary="the layers of BERT-base alone, hidden states in and out, 85.1M parameters",
    inputs=FeatureInput(128),
    small={"width": 32, "depth": 2, "num_heads": 4, "feedforward": 64, "dropout": 0.0},
)
def bert_layers(
    *,
    width: Count = 768,
    depth: Count = 12,
    num_heads: Count = 12,
    feedforward: Count = 3072,
    dropout: Share = 0.1,
) -> nn.Module:
    """Build it; input and output are [B, N, `width`]."""
    _heads("bert_layers", width, num_heads)
    return BertLayers(BertSizes(width, num_heads, feedforward, dropout), depth)
