"""Operations along some dimensions: sums up to a place, sorting, looking up, writing by an index, transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.geta_core.graph.operators.case import Case

aten = torch.ops.aten


def over(op: Any, *args: Any, result: int | None = None) -> tuple[Any, Any]:
    """An operation along the tokens and along the channels."""

    def along(dim: int) -> Any:
        def body(net: Any, y: Tensor) -> Tensor:
            value = op(y.clone(), *args, dim)
            return value if result is None else value[result]

        return body

    return along(1), along(-1)


def both(name: str, op: Any, *args: Any, result: int | None = None) -> tuple[Case, Case]:
    """Rows of tokens may go, parts of what is mixed may not."""
    tokens, channels = over(op, *args, result=result)
    return Case(f"{name} of tokens", tokens), Case(f"{name} of channels", channels, free="none")


def places(y: Tensor, count: int = 2) -> Tensor:
    """Positions of tokens, the same for all features: [N, count, c]."""
    order = y.detach().pow(2).sum(-1).argsort(1)[:, :count]
    return order.unsqueeze(-1).expand(-1, -1, y.shape[-1])


def scattered(op: Any, *more: Any) -> Any:
    return lambda net, y: op(y.relu().clone(), 1, places(y), y[:, :2] * 2, *more)


def by_index(op: Any) -> Any:
    return lambda net, y: op(y.relu().clone(), 1, torch.tensor([1, 0]), y[:, :2])


def put(op: Any) -> Any:
    return lambda net, y: op(y.relu().clone(), [None, torch.tensor([1, 0])], y[:, :2])


def put_masked(net: Any, y: Tensor) -> Tensor:
    z = y.relu().clone()
    z[:, torch.tensor([True] + [False] * (y.shape[1] - 1))] = y[:, 1:2]
    return z


def put_channels(net: Any, y: Tensor) -> Tensor:
    z = y.relu().clone()
    z[..., torch.tensor([1, 0])] = y[..., :2]
    return z


def transforms() -> list[Case]:
    cases = []
    for kind in ("fft", "ifft", "rfft"):
        for suffix, dims in (("", 1), ("2", [0, 1]), ("n", [1])):
            op = getattr(torch.fft, f"{kind}{suffix}")
            cases.append(Case(f"{kind}{suffix}", lambda net, y, op=op, dims=dims: op(y, dim=dims).real))
    for suffix, dims in (("", 1), ("2", [0, 1]), ("n", [1])):
        op = getattr(torch.fft, f"irfft{suffix}")
        cases.append(Case(f"irfft{suffix}", lambda net, y, op=op, dims=dims: op(torch.complex(y, y.relu()), dim=dims)))
    cases.append(Case("fft of channels", lambda net, y: torch.fft.fft(y).real, free="none"))
    cases.append(Case("fft2 of both", lambda net, y: torch.fft.fft2(y).real, free="none"))
    return cases


ORDERED: tuple[Case, ...] = (
    *both("running sum", aten.cumsum),
    *both("running product", aten.cumprod),
    Case("running sum in place", lambda net, y: aten.cumsum_(y.clone(), 1)),
    Case("running product in place", lambda net, y: aten.cumprod_(y.clone(), 1)),
    *both("running maximum", aten.cummax, result=0),
    *both("running minimum", aten.cummin, result=0),
    Case("running logsumexp", lambda net, y: y * y.logcumsumexp(1)),
    Case("running logsumexp of channels", lambda net, y: y * y.logcumsumexp(-1), free="none"),
    *both("sorted", aten.sort, result=0),
    Case("sorted by the first dimension", lambda net, y: aten.msort(y)),
    Case("channels sorted by the first dimension", lambda net, y: aten.msort(y.movedim(-1, 0)), free="none", out=0),
    Case("order", lambda net, y: y * y.argsort(1)),
    Case("order of channels", lambda net, y: y * y.argsort(-1), free="none", strict=True),
    Case("largest of tokens", lambda net, y: y.topk(2, 1)[0]),
    Case("largest of channels", lambda net, y: y.topk(2)[0], free="none", strict=True),
    Case("triangles", lambda net, y: y.transpose(0, 2).tril() + y.transpose(0, 2).triu(1), out=0),
    Case("triangles in place", lambda net, y: y.transpose(0, 2).clone().tril_().triu_(-1), out=0),
    Case("triangle of channels", lambda net, y: y.tril(), free="none"),
    Case("gather", lambda net, y: y.gather(1, places(y))),
    Case(
        "gather of channels", lambda net, y: y.gather(-1, torch.zeros_like(y[..., :2]).long()), free="none", strict=True
    ),
    Case("take_along_dim", lambda net, y: torch.take_along_dim(y, places(y), 1)),
    Case("index_select", lambda net, y: y.index_select(1, torch.tensor([1, 0, 0]))),
    Case("scatter_add", scattered(aten.scatter_add)),
    Case("scatter_add_", scattered(aten.scatter_add_)),
    Case("scatter_reduce", scattered(aten.scatter_reduce.two, "amax")),
    Case("scatter_reduce_", scattered(aten.scatter_reduce_.two, "sum")),
    Case("scatter", scattered(aten.scatter)),
    Case("scatter_", scattered(aten.scatter_)),
    Case("scatter of a number", lambda net, y: aten.scatter(y.relu(), 1, places(y), 1.0), free="none"),
    Case("scatter_ of a number", lambda net, y: aten.scatter_(y.relu().clone(), 1, places(y), 1.0), free="none"),
    Case("index_add", by_index(aten.index_add)),
    Case("index_add_", by_index(aten.index_add_)),
    Case("index_copy", by_index(aten.index_copy)),
    Case("index_copy_", by_index(aten.index_copy_)),
    Case("index_put", put(aten.index_put)),
    Case("index_put_", put(aten.index_put_)),
    Case("index_put by a mask", put_masked),
    Case("index_put of channels", put_channels, free="none", strict=True),
    *transforms(),
)
