"""Linear maps, norms, attention, recurrence, quantizers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.geta_core.graph.operators.case import Case, Sizes, share

aten = torch.ops.aten


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def weight(*shape: str) -> Any:
    """Parts with one weight whose sizes are numbers or names of sizes."""
    return lambda s: {"w": p(*(getattr(s, a) if isinstance(a, str) else a for a in shape))}


def conv(rank: int, transposed: bool = False, groups: int = 1) -> Any:
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind: Any = ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d) if transposed else plain)[rank - 1]
    return lambda s: {"f": kind(s.c, 2 * s.c, 1, groups=groups)}


def raw_convolution(net: Any, y: Tensor) -> Tensor:
    f = net.f
    return aten.convolution(y, f.weight, f.bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


def heads(s: Sizes) -> dict[str, Any]:
    return {"q": nn.Linear(s.c, s.c), "k": nn.Linear(s.c, s.c), "v": nn.Linear(s.c, s.c)}


def attention(net: Any, y: Tensor) -> Tensor:
    q, k, v = (f(y).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (net.q, net.k, net.v))
    return F.scaled_dot_product_attention(q, k, v, scale=0.7).transpose(1, 2).flatten(2)


def rms_norm(net: Any, y: Tensor) -> Tensor:
    return F.rms_norm(y.transpose(1, 2), (y.shape[1],), net.w).transpose(1, 2)


def counted_rms_norm(net: Any, y: Tensor) -> Tensor:
    """As over all channels of the whole net: the mean over fewer is larger."""
    left = share(net, y)
    return F.rms_norm(y, y.shape[-1:], net.w, 0.01 / left) * left**-0.5


UNITS = 6


def recurrent(gates: int, op: Any, states: int = 1) -> tuple[Any, Any]:
    """A recurrent layer as the operation itself, whose sizes are those of its weights, and its parts."""

    def body(net: Any, y: Tensor) -> Tensor:
        start = [y.new_zeros(1, y.shape[0], net.hidden.shape[1]) for _ in range(states)]
        values = [net.inputs, net.hidden, net.b, net.d]
        given = start if states > 1 else start[0]
        result: Tensor = op(y.tanh(), given, values, True, 1, 0.0, False, False, True)[0]
        return result

    def parts(s: Sizes) -> dict[str, Any]:
        rows = gates * UNITS
        return {"inputs": p(rows, s.c), "hidden": p(rows, UNITS), "b": p(rows), "d": p(rows)}

    return body, parts


def grid(s: Sizes) -> dict[str, Tensor]:
    return {"scale": torch.tensor([0.1]), "zero": torch.tensor([0.0])}


def rows(s: Sizes) -> dict[str, Any]:
    return {"w": p(6, s.c), "scale": torch.rand(6) + 0.1, "zero": torch.zeros(6)}


def learned(op: Any) -> Any:
    return lambda net, y: op(y, net.scale, net.zero, -8, 7, 1.0)


def learned_rows(net: Any, y: Tensor) -> Tensor:
    w = aten._fake_quantize_learnable_per_channel_affine(
        net.w.float(), net.scale.float(), net.zero.float(), 0, -8, 7, 1.0
    )
    return F.linear(y, w.to(y.dtype))


def fixed_rows(net: Any, y: Tensor) -> Tensor:
    return F.linear(y, torch.fake_quantize_per_channel_affine(net.w, net.scale.float(), net.zero.int(), 0, -8, 7))


def observed(net: Any, y: Tensor) -> Tensor:
    off = torch.zeros(1, dtype=torch.int64)
    low, high = torch.tensor(-1.0, dtype=y.dtype), torch.tensor(1.0, dtype=y.dtype)
    scale, zero = torch.ones(1, dtype=y.dtype), torch.zeros(1, dtype=torch.int32)
    on = torch.ones(1, dtype=torch.int64)
    return aten.fused_moving_avg_obs_fake_quant(y, off, on, low, high, scale, zero, 0.01, -8, 7, -1)


def own(net: Any, y: Tensor) -> Tensor:
    d, q, t = (torch.full((1,), value, dtype=y.dtype) for value in (0.1, 2.0, 1.0))
    return torch.ops.geta.fake_quantize(y, d, q, t, True)


LINEAR: tuple[Case, ...] = (
    Case("linear", lambda net, y: F.linear(y, net.w).relu(), weight(5, "c")),
    Case("matmul", lambda net, y: aten.matmul(y, net.w), weight("c", 5)),
    Case("matmul of both", lambda net, y: y @ (y.relu().mT @ y)),
    Case("bmm", lambda net, y: torch.bmm(y, net.w.expand(len(y), -1, -1)), weight(1, "c", 5)),
    Case("mm", lambda net, y: torch.mm(y.flatten(0, 1), net.w).unflatten(0, (-1, y.shape[1])), weight("c", 5)),
    Case("mv", lambda net, y: y * torch.mv(y.flatten(0, 1), net.w).view(y.shape[0], -1, 1), weight("c")),
    Case("dot", lambda net, y: y * torch.dot(y.sum((0, 1)), net.w), weight("c")),
    Case(
        "addmm",
        lambda net, y: torch.addmm(net.b, y.flatten(0, 1), net.w).unflatten(0, (-1, y.shape[1])),
        lambda s: {"w": p(s.c, 5), "b": p(5)},
    ),
    Case(
        "baddbmm",
        lambda net, y: torch.baddbmm(net.b, y, net.w.expand(len(y), -1, -1), beta=0.5),
        lambda s: {"w": p(1, s.c, 5), "b": p(1, 1, 5)},
    ),
    Case("addmm_", lambda net, y: y.new_zeros(len(y), net.w.shape[-1]).addmm_(y[:, 0], net.w), weight("c", 5)),
    Case(
        "baddbmm_",
        lambda net, y: y.new_zeros(len(y), y.shape[1], net.w.shape[-1]).baddbmm_(y, net.w.expand(len(y), -1, -1)),
        weight(1, "c", 5),
    ),
    Case("einsum", lambda net, y: torch.einsum("btc,co->bto", y, net.w), weight("c", 5)),
    *(
        Case(f"conv{r}d{' transposed' * t}", lambda net, y: net.f(y).relu(), conv(r, bool(t)), layout)
        for r, layout in ((1, "signal"), (2, "image"), (3, "volume"))
        for t in (0, 1)
    ),
    Case("group convolution", lambda net, y: net.f(y).relu(), conv(2, groups=2), "image", "some"),
    Case("depthwise", lambda net, y: F.conv2d(y, net.w, groups=y.shape[1]), weight("c", 1, 2, 2), "image"),
    Case("convolution", raw_convolution, conv(2), "image"),
    Case("attention", attention, heads),
    Case("batch norm", lambda net, y: net.f(y), lambda s: {"f": nn.BatchNorm2d(s.c)}, "image"),
    Case(
        "batch norm without running",
        lambda net, y: aten._native_batch_norm_legit_no_training(y, net.w, net.b, net.m, net.v, 0.1, 1e-5)[0],
        lambda s: {"w": p(s.c), "b": p(s.c), "m": torch.randn(s.c), "v": torch.rand(s.c) + 0.5},
        "image",
    ),
    Case("instance norm", lambda net, y: F.instance_norm(y, weight=net.w), weight("c"), "image"),
    Case("group norm", lambda net, y: F.group_norm(y, y.shape[1] // 4, net.w), weight("c"), "image", "some"),
    Case("layer norm", lambda net, y: F.layer_norm(y, y.shape[-1:]), free="none"),
    Case("layer norm of places", lambda net, y: F.layer_norm(y, y.shape[2:]), layout="image"),
    Case("rms norm of tokens", rms_norm, weight("t")),
    Case("rms norm", counted_rms_norm, lambda s: {"w": p(s.c), "width": s.c}),
    Case(
        "rms norm of quantized channels",
        lambda net, y: counted_rms_norm(net, torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -8, 7)),
        lambda s: {"w": p(s.c), "width": s.c},
    ),
    Case(
        "rms norm of a stream",
        lambda net, y: F.rms_norm(y + net.f(y), y.shape[-1:]),
        lambda s: {"f": nn.Linear(s.c, s.c)},
        free="none",
        strict=True,
    ),
    Case("local response norm", lambda net, y: F.local_response_norm(y, 3, alpha=1.0), layout="image", free="none"),
    Case("lstm", *recurrent(4, aten.lstm.input, 2)),
    Case("gru", *recurrent(3, aten.gru.input)),
    Case("rnn of tanh", *recurrent(1, aten.rnn_tanh.input)),
    Case("rnn of relu", *recurrent(1, aten.rnn_relu.input)),
    Case("own quantizer", own),
    Case("fixed quantizer", lambda net, y: torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -8, 7)),
    Case("learned quantizer", learned(aten._fake_quantize_learnable_per_tensor_affine), grid),
    Case("fixed quantizer of rows", fixed_rows, rows),
    Case("learned quantizer of rows", learned_rows, rows),
    Case("observing quantizer", observed),
    Case("gated linear unit", lambda net, y: F.glu(y, -1), free="some"),
    Case(
        "weight norm",
        lambda net, y: F.linear(y, torch._weight_norm(net.w, net.g, 0)),
        lambda s: {"w": p(5, s.c), "g": p(5, 1)},
        free="none",
        strict=True,
    ),
    Case("new empty", lambda net, y: y * y.new_empty(1).fill_(2.0)),
)
