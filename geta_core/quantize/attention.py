"""A drop-in for torch.nn.MultiheadAttention that runs out_proj as a module and can lose heads.

torch's module hands out_proj.weight to a function, so that hooks of out_proj never run, and its forward demands that
the in-projection has 3 * embed_dim rows. The drop-in has the same parameters, the same call and the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.MultiheadAttention):
    """Multi-head attention over the tensors of an nn.MultiheadAttention.

    Instances come from :func:`replace_attention_` alone, which turns an existing module into one.

    To remove whole heads, cut their rows from each third of ``in_proj_weight`` and ``in_proj_bias`` (or from the three
    separate projections), the columns of ``out_proj.weight`` and the entries of ``bias_k`` and ``bias_v``, and lower
    ``num_heads``. To remove indices inside heads cut the same ones in every head: the sizes are read from the tensors,
    and the scale of the scores stays that of the original head. Input and output keep ``embed_dim`` features.
    """

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; shapes, masks and results are those of torch.nn.MultiheadAttention."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError("quantized attention takes padded tensors and a key_padding_mask, not nested tensors")
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True needs attn_mask too: it only says that the mask is the causal one")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if is_causal else attn_mask, key_padding_mask, q)
        mixed, weights = self._mix(q, k, v, mask, is_causal, need_weights)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return output.squeeze(0), weights
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v as [N, heads, length, head size], with the extra keys and values that were asked for."""
        packed = cast("Tensor | None", self.in_proj_weight)
        if packed is None:
            matrices: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            matrices = packed.chunk(3)
        shifts = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, m, s) for x, m, s in zip((query, key, value), matrices, shifts, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat((k, self.bias_k.expand(k.size(0), -1, -1)), dim=1)
            v = torch.cat((v, self.bias_v.expand(v.size(0), -1, -1)), dim=1)
        q, k, v = (torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Return both masks as one additive mask that broadcasts to [N, heads, L, S], or None."""
        extra = (self.bias_k is not None) + bool(self.add_zero_attn)
        total: Tensor | None = None
        if attn_mask is not None:
            total = _additive(attn_mask, q.dtype, extra)
            if total.dim() == 3:
                total = torch.unflatten(total, 0, (q.size(0), self.num_heads))
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q.dtype, extra)[:, None, None, :]
            total = padding if total is None else total + padding
        return total

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=self.scale)
            return mixed, None
        scores = (q * self.scale) @ k.transpose(-2, -1)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, dropout) if dropout > 0.0 else weights
        return weights @ v, weights


def _additive(mask: Tensor, dtype: torch.dtype, extra: int) -> Tensor:
    """Return the mask as numbers to add to the scores, with ``extra`` keys at the end that are always seen."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    elif not mask.is_floating_point():
        raise TypeError(f"an attention mask must be boolean or floating-point, but got {mask.dtype}")
    return F.pad(mask, (0, extra)) if extra else mask


def replace_attention_(model: nn.Module) -> list[nn.Module]:
    """Turn every torch.nn.MultiheadAttention in the model, or the model itself, into the drop-in, in place.

    The module objects stay the same (only their class changes), so references, hooks, parameters and mode stay too.
    Subclasses are left alone. Enclosing nn.TransformerEncoder modules stop using nested tensors, which bypass the
    quantizers.

    Returns:
        The modules that were changed.
    """
    changed: list[nn.Module] = []
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = Attention
            # nn.TransformerEncoderLayer reads this flag: False keeps it off the fast path, which calls no submodule.
            module._qkv_same_embed_dim = False
            assert isinstance(module, Attention)
            module.scale = module.head_dim**-0.5
            changed.append(module)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return changed


def restore_attention(model: nn.Module) -> Callable[[], None]:
    """Return a function that undoes a later :func:`replace_attention_` of this model."""
    attention = [(m, m._qkv_same_embed_dim) for m in model.modules() if type(m) is nn.MultiheadAttention]
    encoders = [(m, m.use_nested_tensor) for m in model.modules() if isinstance(m, nn.TransformerEncoder)]

    def restore() -> None:
        for module, same in attention:
            module.__class__ = nn.MultiheadAttention
            module._qkv_same_embed_dim = same
            vars(module).pop("scale", None)
        for encoder, nested in encoders:
            encoder.use_nested_tensor = nested

    return restore
