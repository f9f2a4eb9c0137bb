"""Vision transformer (Dosovitskiy et al., arXiv:2010.11929), with the sizes of DeiT (Touvron et al., arXiv:2012.12877).

Pre-norm, gelu, class token, learned positions, one fused projection for query, key and value, a linear classifier.
Differs: no dropout and no stochastic depth. `vit` at its defaults is a small net for CIFAR; `deit_tiny` and
`vit_small` are the 224-pixel ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestration.models.common import require, trunc_init_, trunc_normal_
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count, Scale
from orchestration.models.registry import register


@dataclass(frozen=True)
class Sizes:
    """Sizes of the transformer; `tokens` counts the patches and the class token."""

    width: int
    depth: int
    num_heads: int
    hidden: int
    patch: int
    tokens: int


class Attention(nn.Module):
    """Self-attention on [B, N, C] with one linear layer for query, key and value."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        out: Tensor = nn.functional.scaled_dot_product_attention(query, key, value)
        out = self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class Mlp(nn.Module):
    """Two linear layers with a gelu between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block on [B, N, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = Attention(sizes.width, sizes.num_heads)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = Mlp(sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Images [B, C, H, W] to tokens [B, N, width], one per square patch."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return one token per patch."""
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class VisionTransformer(nn.Module):
    """Images [B, C, S, S] to logits [B, num_classes]; the side S is fixed by the position embedding."""

    def __init__(self, sizes: Sizes, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, sizes.width, sizes.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.tokens, sizes.width))
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.head = nn.Linear(sizes.width, num_classes)
        trunc_init_(self)
        trunc_normal_(self.cls_token)
        trunc_normal_(self.pos_embed)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        logits: Tensor = self.head(x[:, 0])
        return logits


@register(
    "vit",
    summary="vision transformer with fused query, key and value",
    inputs=ImageInput(32),
    small={"image_size": 16, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 4},
)
def vit(
    *,
    num_classes: Count = 10,
    in_channels: Count = 3,
    image_size: Count = 32,
    patch_size: Count = 4,
    width: Count = 192,
    depth: Count = 6,
    num_heads: Count = 3,
    mlp_ratio: Scale = 4.0,
) -> nn.Module:
    """Build it; `patch_size` must divide `image_size`, and `num_heads` must divide `width`."""
    require(
        "vit",
        patch_size=(image_size % patch_size == 0, f"must divide the image size {image_size}, got {patch_size}"),
        num_heads=(width % num_heads == 0, f"must divide the width {width}, got {num_heads}"),
    )
    tokens = (image_size // patch_size) ** 2 + 1
    sizes = Sizes(width, depth, num_heads, max(1, round(width * mlp_ratio)), patch_size, tokens)
    return VisionTransformer(sizes, num_classes, in_channels)


@register(
    "deit_tiny",
    summary="DeiT-Tiny, 16-pixel patches of 224-pixel images, 5.72M parameters",
    inputs=ImageInput(224),
    small={"image_size": 32, "depth": 1, "num_classes": 10},
)
def deit_tiny(
    *, num_classes: Count = 1000, in_channels: Count = 3, image_size: Count = 224, depth: Count = 12
) -> nn.Module:
    """Build it: 192 wide, 3 heads."""
    return vit(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch_size=16, depth=depth, width=192
    )


@register(
    "vit_small",
    summary="ViT-Small, 16-pixel patches of 224-pixel images, 22.05M parameters",
    inputs=ImageInput(224),
    small={"image_size": 32, "depth": 1, "num_classes": 10},
)
def vit_small(
    *, num_classes: Count = 1000, in_channels: Count = 3, image_size: Count = 224, depth: Count = 12
) -> nn.Module:
    """Build it: 384 wide, 6 heads."""
    return vit(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=16,
        depth=depth,
        width=384,
        num_heads=6,
    )
