"""Graph cases on tokens: ways to write attention, low-rank branches, experts, recurrence and state spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.geta_core.graph.nets import Net, parameter, token_net
from tests.zoo.family import Family, token_ids

WIDTH, HEADS = 16, 4


class Rms(nn.Module):
    """RMS normalization written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class LowRank(nn.Module):
    """A linear layer with a low-rank branch beside it (LoRA)."""

    def __init__(self, width: int, out: int, rank: int = 3) -> None:
        super().__init__()
        self.base = nn.Linear(width, out, bias=False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


def rotated(x: Tensor) -> Tensor:
    """Rotary embedding by halves."""
    half = x.shape[-1] // 2
    rate = 100.0 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angle = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None] * rate
    cos, sin = torch.cat([angle.cos()] * 2, dim=-1), torch.cat([angle.sin()] * 2, dim=-1)
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def rotated_complex(x: Tensor) -> Tensor:
    """Rotary embedding by complex multiplication."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    rate = 100.0 ** (-torch.arange(pairs.shape[-1], dtype=x.dtype, device=x.device) / pairs.shape[-1])
    angle = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None] * rate
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


class Attention(nn.Module):
    """Separate projections; fewer key and value heads are repeated."""

    def __init__(
        self,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
        shared: int = HEADS,
        rotate: Callable[[Tensor], Tensor] | None = None,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.rotate = WIDTH // HEADS, rotate
        self.q, self.out = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH)
        self.k, self.v = linear(WIDTH, shared * self.size), linear(WIDTH, shared * self.size)
        self.bias = nn.Parameter(torch.zeros(HEADS, 13)) if bias else None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        other = x if other is None else other
        q, k, v = (
            made.view(*made.shape[:2], -1, self.size).transpose(1, 2)
            for made in (self.q(x), self.k(other), self.v(other))
        )
        if self.rotate is not None:
            q, k = self.rotate(q), self.rotate(k)
        if k.shape[1] != q.shape[1]:
            k, v = (part[:, :, None].expand(-1, -1, HEADS // part.shape[1], -1, -1).flatten(1, 2) for part in (k, v))
        scores = q @ k.transpose(-1, -2) * self.size**-0.5
        if self.bias is not None:
            steps = torch.arange(x.shape[1], device=x.device)
            scores = scores + self.bias[:, steps[:, None] - steps[None] + x.shape[1] - 1]
        mixed = scores.softmax(dim=-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """One projection for queries, keys and values; ``interleaved`` orders it head by head, as Megatron does."""

    def __init__(self, *, interleaved: bool = False, talking: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.interleaved, self.size = interleaved, WIDTH // HEADS
        self.talk = nn.Linear(HEADS, HEADS) if talking else None

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        if self.interleaved:
            q, k, v = self.qkv(x).view(rows, length, -1, 3 * self.size).transpose(1, 2).chunk(3, dim=-1)
        else:
            q, k, v = self.qkv(x).view(rows, length, 3, -1, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.talk is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = self.talk((q @ k.transpose(-1, -2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            mixed = scores.softmax(dim=-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(rows, length, -1))


class Gated(nn.Module):
    """The gated MLP of Llama."""

    def __init__(self, linear: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.gate, self.up, self.down = linear(WIDTH, 24), linear(WIDTH, 24), linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and MLP on a residual stream that is normalized before each, or after each."""

    def __init__(
        self,
        attention: nn.Module,
        mlp: nn.Module,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        *,
        post: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.mlp, self.post = attention, mlp, post
        self.norm1, self.norm2 = norm(WIDTH), norm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def plain_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))


class Stack(nn.Module):
    """Features in, blocks, a head on the mean."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(8, WIDTH), nn.ModuleList(blocks), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def stack(block: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Stack(block(), block())


def _experts() -> nn.Module:
    """Every expert runs on every token, weighted by a softmax (soft mixture)."""

    def body(net: Any, x: Tensor) -> Tensor:
        weight = net.router(x).softmax(dim=-1)
        hidden = torch.relu(torch.einsum("btd,edh->bteh", x, net.enter))
        return torch.einsum("bteh,ehd,bte->btd", hidden, net.leave, weight)

    parts = {"enter": parameter(3, WIDTH, 10), "leave": parameter(3, 10, WIDTH)}
    return token_net(body, width=WIDTH, router=nn.Linear(WIDTH, 3), **parts)


def _recurrent(kind: type[nn.Module], **more: Any) -> Callable[[], nn.Module]:
    """A recurrent layer between two linear ones."""
    out = 12 * (2 if more.get("bidirectional") else 1)
    return lambda: token_net(
        lambda net, x: torch.relu(net.recurrent(torch.relu(x))[0]),
        width=10,
        out=out,
        recurrent=kind(10, 12, batch_first=True, **more),
    )


def _state_space() -> nn.Module:
    """A selective state space (Mamba) with its scan written as a loop over the tokens."""

    def body(net: Any, x: Tensor) -> Tensor:
        value, gate = net.enter(x).chunk(2, dim=-1)
        value = F.silu(net.conv(F.pad(value.transpose(1, 2), (2, 0))).transpose(1, 2))
        step = F.softplus(net.step(value))
        into, out = net.states(value).chunk(2, dim=-1)
        decay = torch.exp(step[..., None] * -torch.exp(net.rate))
        change = (step * value)[..., None] * into[:, :, None, :]
        state, seen = torch.zeros_like(change[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + change[:, t]
            seen.append((state * out[:, t, None, :]).sum(-1))
        return net.leave((torch.stack(seen, dim=1) + value * net.skip) * F.silu(gate))

    return token_net(
        body,
        width=WIDTH,
        enter=nn.Linear(WIDTH, 24),
        conv=nn.Conv1d(12, 12, 3, groups=12),
        step=nn.Linear(12, 12),
        states=nn.Linear(12, 8),
        rate=parameter(12, 4),
        skip=parameter(12),
        leave=nn.Linear(12, WIDTH),
    )


def _modulated() -> nn.Module:
    """A diffusion transformer's block: scale, shift and gate come from the mean token."""

    def body(net: Any, x: Tensor) -> Tensor:
        for block, made in zip(net.blocks, net.modulation, strict=True):
            shift, scale, gate = made(F.silu(x.mean(1, keepdim=True))).chunk(3, dim=-1)
            x = x + gate * block(F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift)
        return x

    blocks = nn.ModuleList([Fused(), plain_mlp()])
    return token_net(
        body, width=WIDTH, blocks=blocks, modulation=nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in blocks)
    )


def _crossed() -> nn.Module:
    """Learned queries attend to the tokens, and the tokens to the queries (a mask decoder)."""

    def body(net: Any, x: Tensor) -> Tensor:
        queries = net.queries.expand(x.shape[0], -1, -1)
        queries = queries + net.to_tokens(net.norm(queries), x)
        queries = queries + net.mlp(net.norm(queries))
        x = x + net.to_queries(x, queries)
        return x @ net.mask(queries).transpose(1, 2)

    parts = {"to_tokens": Attention(), "to_queries": Attention(), "mlp": plain_mlp(), "norm": nn.LayerNorm(WIDTH)}
    return token_net(body, width=WIDTH, out=3, queries=parameter(1, 3, WIDTH), mask=nn.Linear(WIDTH, WIDTH), **parts)


def _torch_encoder() -> nn.Module:
    """nn.TransformerEncoder and nn.TransformerDecoder with nn.MultiheadAttention inside."""
    more = {"dim_feedforward": 24, "dropout": 0.0, "batch_first": True}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, **more), 1, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(WIDTH, HEADS, **more), 1)
    return token_net(lambda net, x: net.decoder(x, net.encoder(x)), width=WIDTH, encoder=encoder, decoder=decoder)


def _two_tokens() -> nn.Module:
    """Class and distillation tokens with a head each, learned positions."""

    def body(net: Any, x: Tensor) -> Tensor:
        x = torch.cat([net.extra.expand(x.shape[0], -1, -1), x], dim=1) + net.places
        x = net.norm(net.block(x))
        return torch.stack([net.one(x[:, 0]), net.two(x[:, 1])], dim=1)

    block, extra, places = Block(Fused(), plain_mlp()), parameter(1, 2, WIDTH), parameter(1, 9, WIDTH)
    heads = {"one": nn.Linear(WIDTH, 6), "two": nn.Linear(WIDTH, 6)}
    return token_net(
        body, width=WIDTH, out=6, block=block, extra=extra, places=places, norm=nn.LayerNorm(WIDTH), **heads
    )


def _tied_language(mixer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A language model whose head is its embedding."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.embedding(x)
        for block in net.blocks:
            y = block(y)
        return F.linear(net.norm(y), net.embedding.weight)

    return lambda: Net(
        forward,
        embedding=nn.Embedding(50, WIDTH),
        blocks=nn.ModuleList(Block(mixer(), Gated(), Rms) for _ in range(2)),
        norm=Rms(WIDTH),
    )


def features(batch: int, length: int | None) -> Tensor:
    return torch.randn(batch, length or 7, 8)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "simple_vit": stack(lambda: Block(Fused(), plain_mlp())),
    "megatron": stack(lambda: Block(Fused(interleaved=True), plain_mlp(), post=True)),
    "talking_heads": stack(lambda: Block(Fused(talking=True), plain_mlp())),
    "grouped_query": stack(lambda: Block(Attention(shared=2, rotate=rotated), Gated(), Rms)),
    "multi_query": stack(lambda: Block(Attention(shared=1), Gated())),
    "rotary_complex": stack(lambda: Block(Attention(rotate=rotated_complex), Gated(), Rms)),
    "relative_bias": stack(lambda: Block(Attention(bias=True), plain_mlp())),
    "lora": stack(lambda: Block(Attention(LowRank), Gated(LowRank), Rms)),
    "mask_decoder": _crossed,
    "diffusion_transformer": _modulated,
    "torch_transformer": _torch_encoder,
    "class_distillation_tokens": _two_tokens,
    "soft_experts": _experts,
    "lstm": _recurrent(nn.LSTM),
    "lstm_bidirectional": _recurrent(nn.LSTM, bidirectional=True, num_layers=2),
    "gru": _recurrent(nn.GRU),
    "state_space": _state_space,
}
WITHOUT_ATTENTION = ("soft_experts", "lstm", "lstm_bidirectional", "gru", "state_space")
FIXED_LENGTH = ("class_distillation_tokens", "relative_bias")
LANGUAGE: dict[str, Callable[[], nn.Module]] = {
    "llama_lora_tied": _tied_language(lambda: Attention(LowRank, shared=2, rotate=rotated)),
    "phi_tied": _tied_language(lambda: Fused()),
}


def families() -> Iterator[Family]:
    """Every case on tokens."""
    for name, build in LAYERS.items():
        lengths = None if name in FIXED_LENGTH else (7, 5)
        yield Family(
            f"case/{name}", build, features, "other" if name in WITHOUT_ATTENTION else "transformer", (), lengths
        )
    for name, build in LANGUAGE.items():
        yield Family(f"case/{name}", build, token_ids, "transformer", (), (7, 5))
