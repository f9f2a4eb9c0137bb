"""Element-wise operations, reductions, pooling and resizing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.geta_core.graph.operators.case import Case, share

aten = torch.ops.aten


def unary(op: Any, *args: Any) -> Any:
    """The operation on its own argument, in place on a copy where its name says so."""
    return lambda net, y: op(4 * y, *args)


def masked(op: Any, *args: Any) -> Any:
    """A truth value of each element times the element."""
    return lambda net, y: y * op(y, *args).to(y.dtype)


def reduced(op: Any, *args: Any, **options: Any) -> Any:
    """The element times a number of all tokens."""
    return lambda net, y: y * op(y, *args, **options)


def pooled(op: Any, *args: Any) -> Any:
    return lambda net, y: first(op(y, *args))


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def logic(net: Any, y: Tensor) -> Tensor:
    a, b = y > 0, y.abs() > 0.5
    both = aten.__or__(aten.__and__(a, b), aten.__xor__(a, b))
    return y * both.to(y.dtype)


def _in_place_logic(net: Any, y: Tensor) -> Tensor:
    z = y.clone()
    for op in (aten.greater_, aten.greater_equal_, aten.less_, aten.less_equal_, aten.not_equal_):
        z = z + y * op(y.clone(), 0.1)
    return z


ZERO_KEEPING = (
    "hardswish",
    "relu6",
    "absolute",
    "negative",
    "square",
    "fix",
    "selu",
    "celu",
    "nan_to_num",
    "relu",
    "tanh",
)
SECOND_NAMES = {"multiply": 2.0, "divide": 2.0, "true_divide": 2.0, "float_power": 2.0, "clip": -1.0, "subtract": 0.0}
COMPARED = ("greater", "greater_equal", "less", "less_equal", "not_equal")
DROPPED = ("dropout", "feature_dropout", "alpha_dropout")
POOL1 = (
    Case("max_pool1d", pooled(aten.max_pool1d, [2]), layout="signal"),
    Case("max_pool1d with indices", pooled(aten.max_pool1d_with_indices, [2]), layout="signal"),
    Case("avg_pool1d", pooled(aten.avg_pool1d, [2]), layout="signal"),
    Case("adaptive_avg_pool1d", pooled(aten.adaptive_avg_pool1d, [2]), layout="signal"),
    Case("adaptive_max_pool1d", pooled(aten.adaptive_max_pool1d, [2]), layout="signal"),
    Case("upsample_nearest1d", pooled(aten.upsample_nearest1d, [7]), layout="signal"),
    Case("upsample_nearest_exact1d", pooled(aten._upsample_nearest_exact1d, [7]), layout="signal"),
    Case("upsample_linear1d", pooled(aten.upsample_linear1d, [7], False), layout="signal"),
    Case("reflection_pad1d", pooled(aten.reflection_pad1d, [1, 2]), layout="signal"),
    Case("replication_pad1d", pooled(aten.replication_pad1d, [1, 2]), layout="signal"),
)
POOL2 = (
    Case("max_pool2d", pooled(aten.max_pool2d, [2, 2]), layout="image"),
    Case("max_pool2d with indices", pooled(aten.max_pool2d_with_indices, [2, 2]), layout="image"),
    Case("avg_pool2d", pooled(aten.avg_pool2d, [2, 2]), layout="image"),
    Case("adaptive_avg_pool2d", pooled(aten.adaptive_avg_pool2d, [2, 3]), layout="image"),
    Case("adaptive_max_pool2d", pooled(aten.adaptive_max_pool2d, [2, 3]), layout="image"),
    Case(
        "fractional_max_pool2d",
        lambda net, y: aten.fractional_max_pool2d(y, [2, 2], [2, 2], net.r.expand(len(y), y.shape[1], 2))[0],
        lambda s: {"r": torch.rand(1, 1, 2)},
        "image",
    ),
    Case("upsample_nearest2d", pooled(aten.upsample_nearest2d, [7, 6]), layout="image"),
    Case("upsample_nearest_exact2d", pooled(aten._upsample_nearest_exact2d, [7, 6]), layout="image"),
    Case("upsample_bilinear2d", pooled(aten.upsample_bilinear2d, [7, 6], False), layout="image"),
    Case("upsample_bilinear2d, smooth", pooled(aten._upsample_bilinear2d_aa, [3, 3], False), layout="image"),
    Case("upsample_bicubic2d", pooled(aten.upsample_bicubic2d, [7, 6], True), layout="image"),
    Case("upsample_bicubic2d, smooth", pooled(aten._upsample_bicubic2d_aa, [3, 3], False), layout="image"),
    Case("reflection_pad2d", pooled(aten.reflection_pad2d, [1, 2, 0, 1]), layout="image"),
    Case("replication_pad2d", pooled(aten.replication_pad2d, [1, 2, 0, 1]), layout="image"),
)
POOL3 = (
    Case("max_pool3d", pooled(aten.max_pool3d, [2, 2, 2]), layout="volume"),
    Case("max_pool3d with indices", pooled(aten.max_pool3d_with_indices, [2, 2, 2]), layout="volume"),
    Case("avg_pool3d", pooled(aten.avg_pool3d, [2, 2, 2]), layout="volume"),
    Case("adaptive_avg_pool3d", pooled(aten.adaptive_avg_pool3d, [1, 2, 3]), layout="volume"),
    Case("adaptive_max_pool3d", pooled(aten.adaptive_max_pool3d, [1, 2, 3]), layout="volume"),
    Case("upsample_nearest3d", pooled(aten.upsample_nearest3d, [3, 7, 6]), layout="volume"),
    Case("upsample_nearest_exact3d", pooled(aten._upsample_nearest_exact3d, [3, 7, 6]), layout="volume"),
    Case("upsample_trilinear3d", pooled(aten.upsample_trilinear3d, [3, 7, 6], False), layout="volume"),
    Case("reflection_pad3d", pooled(aten.reflection_pad3d, [1, 2, 0, 1, 1, 0]), layout="volume"),
    Case("replication_pad3d", pooled(aten.replication_pad3d, [1, 2, 0, 1, 1, 0]), layout="volume"),
)

NUMBERS: tuple[Case, ...] = (
    *(Case(name, unary(getattr(aten, name))) for name in ZERO_KEEPING),
    *(Case(f"{name}_", unary(getattr(aten, f"{name}_"))) for name in ZERO_KEEPING),
    *(Case(name, unary(getattr(aten, name), number)) for name, number in SECOND_NAMES.items()),
    *(Case(f"{name}_", unary(getattr(aten, f"{name}_"), n)) for name, n in SECOND_NAMES.items() if name != "clip"),
    Case("clip_", unary(aten.clip_, -1.0)),
    Case("sigmoid", unary(aten.sigmoid), free="none"),
    Case("log_sigmoid", unary(aten.log_sigmoid), free="none"),
    Case("rsub", lambda net, y: aten.rsub(y.relu(), y)),
    Case("threshold", unary(aten.threshold, -0.1, 20.0)),
    Case("threshold_", unary(aten.threshold_, -0.1, 20.0)),
    Case("rrelu", unary(aten.rrelu)),
    Case("rrelu_", unary(aten.rrelu_)),
    Case("masked_fill", lambda net, y: y.masked_fill(y > 0.5, 0.0)),
    Case("masked_fill_", lambda net, y: y.clone().masked_fill_(y > 0.5, 0.0)),
    Case("where", lambda net, y: torch.where(y > 0.3, y, 0.1 * y)),
    Case("largest of two", lambda net, y: aten.max.other(y, 2 * y) + aten.min.other(y, 2 * y)),
    *(Case(name, masked(getattr(aten, name), 0.1)) for name in COMPARED),
    Case("compared in place", _in_place_logic),
    Case("logic", logic),
    Case("isfinite", masked(aten.isfinite)),
    Case("isnan and isinf", lambda net, y: y - y * (y.isnan() | y.isinf()).to(y.dtype)),
    *(Case(name, unary(getattr(aten, name), 0.5, False)) for name in DROPPED),
    *(Case(f"{name}_", unary(getattr(aten, f"{name}_"), 0.5, False)) for name in DROPPED),
    Case("casts", lambda net, y: aten._to_copy(y.to(torch.float32), dtype=torch.float64).type_as(y).contiguous()),
    Case("detached", lambda net, y: y + aten.alias(y.detach()) + y.clone().detach_()),
    Case("constant of the code", lambda net, y: y * torch.tensor([[2.0]], dtype=torch.float64)),
    Case("sum", reduced(torch.sum, -1, keepdim=True)),
    Case("mean of tokens", reduced(torch.mean, 1, keepdim=True)),
    Case("mean", lambda net, y: y * y.mean(-1, keepdim=True) * share(net, y), lambda s: {"width": s.c}),
    Case("mean of all", lambda net, y: y * y.mean() * share(net, y), lambda s: {"width": s.c}),
    Case("mean of what is not zero", lambda net, y: y * y.sigmoid().mean(-1, keepdim=True), free="none"),
    *(Case(op.__name__, reduced(op, 1, keepdim=True)) for op in (torch.var, torch.std, torch.nanmean, torch.prod)),
    Case("variance and mean", lambda net, y: y * sum(torch.var_mean(y, 1, keepdim=True))),
    Case("deviation and mean", lambda net, y: y * sum(torch.std_mean(y, 1, keepdim=True))),
    Case("median", lambda net, y: y * y.median(1, keepdim=True)[0]),
    Case("kth value", lambda net, y: y * y.kthvalue(2, 1, keepdim=True)[0]),
    Case("any and all", lambda net, y: y * ((y > 1).any(1, keepdim=True) | (y > -9).all(1, keepdim=True)).to(y.dtype)),
    Case("place of the largest", lambda net, y: y * y.argmax(1, keepdim=True) + y * y.argmin(1, keepdim=True)),
    Case("place of the largest channel", lambda net, y: y * y.argmax(-1, keepdim=True), free="none", strict=True),
    Case("largest", lambda net, y: y * y.amax(1, keepdim=True) * y.max(1, keepdim=True)[0]),
    Case("smallest", lambda net, y: y * y.amin(1, keepdim=True) * y.min(1, keepdim=True)[0]),
    Case("largest channel", lambda net, y: y * (y - 9).relu().add(y).amax(-1, keepdim=True), free="none", strict=True),
    Case("largest size", lambda net, y: y * y.abs().amax(-1, keepdim=True)),
    Case("both ends", lambda net, y: (lambda a, b: y * (b.relu() - a.clamp(max=0)))(*y.aminmax(dim=-1, keepdim=True))),
    Case("both ends of tokens", lambda net, y: (lambda a, b: y * (b - a))(*y.aminmax(dim=1, keepdim=True))),
    Case("norm", lambda net, y: y * torch.linalg.vector_norm(y, 2, dim=-1, keepdim=True)),
    Case("norm, by another name", lambda net, y: y * torch.linalg.norm(y, dim=-1, keepdim=True)),
    Case("logsumexp", reduced(torch.logsumexp, 1, keepdim=True)),
    Case("softmax of tokens", lambda net, y: y * (y.softmax(1) + y.log_softmax(1))),
    Case("softmax, by its own name", lambda net, y: y * (aten._softmax(y, 1, False) + aten._log_softmax(y, 1, False))),
    Case("softmax", lambda net, y: y.softmax(-1), free="none"),
    *POOL1,
    *POOL2,
    *POOL3,
)
