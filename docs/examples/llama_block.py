"""One block of a Llama: RMS norms by hand, rotary embedding, grouped-query attention and a gated MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, HEADS, KEY_HEADS, HIDDEN = 1000, 64, 4, 2, 176


class RMSNorm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x: Tensor) -> Tensor:
    """Turn every pair (i, i + half) of the last dimension of [B, H, T, D] by an angle that grows with T."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half) / half)
    angles = torch.outer(torch.arange(x.shape[2]), rates).repeat(1, 2)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


class Attention(nn.Module):
    """Causal attention in which ``HEADS // KEY_HEADS`` queries share a key and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.head = WIDTH // HEADS
        self.q_proj = nn.Linear(WIDTH, HEADS * self.head, bias=False)
        self.k_proj = nn.Linear(WIDTH, KEY_HEADS * self.head, bias=False)
        self.v_proj = nn.Linear(WIDTH, KEY_HEADS * self.head, bias=False)
        self.o_proj = nn.Linear(HEADS * self.head, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of [B, T, WIDTH]."""
        heads = [
            layer(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        ]
        q, k, v = (
            rotate(heads[0]),
            *(each.repeat_interleave(HEADS // KEY_HEADS, 1) for each in (rotate(heads[1]), heads[2])),
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return y


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token."""
        y: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Llama(nn.Module):
    """Embedding, one block, norm and head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.input_norm, self.attention = RMSNorm(WIDTH), Attention()
        self.post_norm, self.mlp = RMSNorm(WIDTH), MLP()
        self.norm, self.head = RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, VOCABULARY] of token ids [B, T]."""
        x = self.embed_tokens(tokens)
        x = x + self.attention(self.input_norm(x))
        x = x + self.mlp(self.post_norm(x))
        y: Tensor = self.head(self.norm(x))
        return y


def build() -> nn.Module:
    """Build the model."""
    return Llama()


def inputs() -> Tensor:
    """Two sequences of twelve tokens."""
    return torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
