"""Models whose own class cannot be cut: the traced graph takes over, and is a normal module in every respect."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import geta_core as geta
from geta_core.graph import ExampleInputs
from geta_core.prepared import Prepared
from geta_core.slim.graph_module import as_switchable
from tests.geta_core.graph.nets import (
    choose,
    double,
    gap,
    image,
    image_net,
    prepared64,
    prunable,
    randomise_,
    rows,
    run,
)


class Base(nn.Module):
    """A convolution with batch norm, what each subclass does to it, and a classifier."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, 2, bias=False), nn.BatchNorm2d(8)
        for name, part in parts.items():
            setattr(self, name, part)

    def features(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.stem(x)))


class LiteralView(Base):
    def __init__(self) -> None:
        super().__init__(hidden=nn.Linear(8 * 16, 6), drop=nn.Dropout(0.5), head=nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.gelu(self.hidden(self.features(x).view(-1, 8 * 16)))))


class LiteralReshape(Base):
    """Attention as it is often written, with the sizes of its heads in the code."""

    def __init__(self) -> None:
        super().__init__(qkv=nn.Linear(8, 24), proj=nn.Linear(8, 8), drop=nn.Dropout(0.5), head=nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).flatten(2).transpose(1, 2)
        B, N = y.shape[:2]
        q, k, v = self.qkv(y).reshape(B, N, 3, 4, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, 8)
        return self.head(self.drop(self.proj(mixed).mean(1)))


class LiteralScores(LiteralReshape):
    """The scores by hand, and heads and batch in one dimension."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).flatten(2).transpose(1, 2)
        B, N = y.shape[:2]
        q, k, v = self.qkv(y).reshape(B, N, 3, 4, 2).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)).reshape(B * 4, N, N).softmax(-1)
        mixed = (scores.reshape(B, 4, N, N) @ v).transpose(1, 2).reshape(B, N, 8)
        return self.head(self.drop(self.proj(mixed).mean(1)))


class LiteralSplit(Base):
    def __init__(self) -> None:
        super().__init__(
            one=nn.Conv2d(4, 6, 3, padding=1, bias=False),
            two=nn.Conv2d(4, 6, 1, bias=False),
            after=nn.BatchNorm2d(12),
            drop=nn.Dropout2d(0.5),
            head=nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.features(x).split(4, dim=1)
        joined = torch.cat([self.one(left), self.two(right)], 1)
        return self.head(self.drop(F.gelu(self.after(joined))).mean((2, 3)))


class UnevenChunks(Base):
    """Three chunks of 3, 3 and 2 channels; each is pooled alone."""

    def __init__(self) -> None:
        super().__init__(
            heads=nn.ModuleList(nn.Linear(size, 5) for size in (3, 3, 2)),
            drop=nn.Dropout(0.5),
        )

    def forward(self, x: Tensor) -> Tensor:
        chunks = self.features(x).chunk(3, 1)
        return self.drop(sum(head(chunk.mean((2, 3))) for head, chunk in zip(self.heads, chunks, strict=True)))


class LiteralHeads(Base):
    """nn.MultiheadAttention between literal sizes."""

    def __init__(self) -> None:
        super().__init__(mix=nn.MultiheadAttention(8, 4, dropout=0.5, batch_first=True), head=nn.Linear(8, 5))
        self.mlp = nn.Sequential(nn.Linear(8, 10), nn.GELU())
        self.out = nn.Linear(160, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).flatten(2).transpose(1, 2)
        y = self.mix(y, y, y, need_weights=False)[0]
        return self.head(self.out(self.mlp(y).reshape(-1, 160)))


NETS: dict[str, tuple[type[Base], dict[str, Any]]] = {
    "literal view": (LiteralView, {}),
    "literal reshape": (LiteralReshape, {}),
    "literal reshape, inside heads": (LiteralReshape, {"heads": "head_dim"}),
    "literal scores": (LiteralScores, {}),
    "literal scores, inside heads": (LiteralScores, {"heads": "head_dim"}),
    "literal split": (LiteralSplit, {}),
    "uneven chunks": (UnevenChunks, {"heads": "head_dim"}),
    "multi-head attention": (LiteralHeads, {}),
    "quantized": (LiteralView, {"weight_bits": (4, 8), "activation_bits": (4, 8), "initial_bits": 8}),
    "quantized attention": (LiteralReshape, {"weight_bits": (4, 8), "activation_bits": (4, 8), "initial_bits": 8}),
}


@cache
def made(name: str) -> tuple[Prepared, geta.Compressed, Tensor]:
    """The prepared and the finished model and their input, once per process: not to be changed."""
    torch.manual_seed(0)
    kind, settings = NETS[name]
    prepared = prepared64(kind(), image(), **settings)
    if kind is UnevenChunks:
        # Two channels of the first chunk alone: what is left does not split evenly.
        prepared.zero_(prunable(prepared, "heads.0.weight", 1)[:2])
    elif name == "literal scores, inside heads":
        # The first index of every head, which may not be taken for the heads.
        prepared.zero_([*prunable(prepared, "qkv.weight", 0)[:1], *prunable(prepared, "stem.weight", 0)[:3]])
    else:
        prepared.zero_(choose(prepared, 1))
    assert prepared.zero_groups() >= 2
    compressed = geta.finish(prepared)
    report = compressed.report
    assert not report.native
    assert report.native_refusal
    assert isinstance(compressed.model, fx.GraphModule)
    return prepared, compressed, image().double()


def quiet(model: nn.Module) -> nn.Module:
    """A copy without dropout."""
    model = copy.deepcopy(model)
    for node in model.graph.nodes if isinstance(model, fx.GraphModule) else ():
        if node.op == "call_module" and "dropout" in node.name and len(node.args) > 1:
            node.args = (node.args[0], 0.0, *node.args[2:])
        if "attention" in node.name:
            node.args = tuple(0.0 if position == 4 else arg for position, arg in enumerate(node.args))
            node.kwargs = {key: 0.0 if key == "dropout_p" else value for key, value in node.kwargs.items()}
    if isinstance(model, fx.GraphModule):
        model.recompile()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("name", NETS)
def test_it_computes_the_same_in_both_modes(name: str) -> None:
    prepared, compressed, x = made(name)
    for count in (1, 2, 5):
        assert gap(run(prepared.model, rows(x, count)), run(compressed.model, rows(x, count))) <= 1e-10
    left, right = quiet(prepared.model), quiet(compressed.model)
    for count in (2, 5):
        assert gap(run(left, rows(x, count), train=True), run(right, rows(x, count), train=True)) <= 1e-10
    assert gap(run(left, x), run(left, x, train=True)) > 1e-6, "batch norm tells the modes apart"


@pytest.mark.parametrize("name", NETS)
def test_it_has_the_names_of_the_model_and_switches_modes(name: str) -> None:
    prepared, compressed, x = made(name)
    model = compressed.model
    own = {f"{site.module_name}.input_quantizer" for site in prepared.sites if site.kind == "input"}
    plain = set(NETS[name][0]().state_dict())
    assert {key for key in model.state_dict() if key.rpartition(".")[0] not in own} == plain
    # Dropout draws in train mode and only there.
    assert gap(run(model, x), run(model, x)) == 0
    torch.manual_seed(0)
    assert gap(run(model, x, train=True), run(model, x, train=True)) > 1e-6
    # Statistics move in train mode and only there; they are the dense model's on what is kept.
    dense, slim = copy.deepcopy(prepared.model), copy.deepcopy(model)
    before = slim.get_buffer("norm.running_mean").clone()
    slim.eval()(x)
    assert torch.equal(slim.get_buffer("norm.running_mean"), before)
    dense.train()(x)
    slim.train()(x)
    keep = compressed.keep["norm.weight", 0]
    assert not torch.equal(slim.get_buffer("norm.running_mean"), before)
    for buffer in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(slim.get_buffer(buffer), dense.get_buffer(buffer)[keep], rtol=0, atol=1e-12)
    assert int(slim.get_buffer("norm.num_batches_tracked")) == int(dense.get_buffer("norm.num_batches_tracked")) == 1


@pytest.mark.parametrize("name", NETS)
def test_it_can_be_tuned_copied_and_loaded(name: str) -> None:
    _, compressed, x = made(name)
    model = copy.deepcopy(compressed.model)
    twin = copy.deepcopy(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(rows(x, 5)).square().sum().backward()
        optimizer.step()
    model.eval()
    still = [key for key, value in model.state_dict().items() if torch.equal(value, state[key])]
    # A range that nothing exceeds has no gradient.
    assert all(key.endswith("q_m") for key in still), still
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert all(torch.equal(value, state[key]) for key, value in twin.state_dict().items()), "the copy shares nothing"
    assert gap(run(model, x), run(twin, x)) > 1e-6
    twin.load_state_dict(model.state_dict())
    assert gap(run(model, x), run(twin, x)) == 0


def test_a_compressed_graph_module_can_be_compressed_again() -> None:
    _, compressed, x = made("literal split")
    again = geta.prepare(compressed.model, x, geta.CompressionConfig(weight_bits=None))
    assert again.num_prunable > 0
    again.zero_(choose(again, 0))
    smaller = geta.finish(again)
    assert smaller.report.parameters < compressed.report.parameters
    assert gap(run(again.model, x), run(smaller.model, x)) <= 1e-10


def test_constants_of_the_code_follow() -> None:
    """A tensor that the forward makes, and one that the module holds without registering it, lose the same channels."""
    net = image_net(
        lambda net, y: y.reshape(-1, 384).reshape(-1, 6, 8, 8) * torch.arange(1.0, 7).view(6, 1, 1) * net.table
    )
    net.table = torch.rand(6, 1, 1)
    net.constant = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    net.body = lambda net, x: net.head(
        torch.tanh(
            net.last(
                net.stem(x).reshape(-1, 384).reshape(-1, 6, 8, 8)
                * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view(6, 1, 1)
                * net.table
            )
        ).mean((2, 3))
    )
    prepared = prepared64(net, image())
    assert len(prunable(prepared, "stem.weight")) == 6
    prepared.zero_([group.id for group in prunable(prepared, "stem.weight")[:3]])
    model = geta.finish(prepared).model
    x = double(image())
    assert gap(run(prepared.model, x), run(model, x)) <= 1e-10
    assert all(len(buffer) == 3 for buffer in model.buffers())
    assert model.to(torch.float32)(x.float()).dtype == torch.float32, "constants move with the module"


def test_attributes_are_adjusted_where_that_is_enough() -> None:
    """A module that keeps its number of heads as an attribute stays what it is; the attribute follows."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.size = 4, 3
            self.qkv, self.proj = nn.Linear(8, 36), nn.Linear(12, 8)

        def forward(self, y: Tensor) -> Tensor:
            B, N, _ = y.shape
            q, k, v = self.qkv(y).reshape(B, N, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            return self.proj(mixed.reshape(B, N, self.heads * self.size))

    net = nn.Sequential(nn.Linear(6, 8), Attention(), Attention(), nn.Linear(8, 5))
    x = torch.randn(2, 7, 6)
    prepared = prepared64(net, x)
    groups = prunable(prepared, "1.qkv.weight"), prunable(prepared, "2.qkv.weight")
    assert [len(found) for found in groups] == [4, 4]
    prepared.zero_([*groups[0][:3], *groups[1][:1]])
    compressed = geta.finish(prepared)
    assert compressed.report.native
    assert {(change.module, change.attribute, change.value) for change in compressed.changes} == {
        ("1", "heads", 1),
        ("2", "heads", 3),
    }
    assert gap(run(prepared.model, x.double()), run(compressed.model, x.double())) <= 1e-10


def test_the_traced_mode_is_that_of_the_call_not_of_the_export() -> None:
    """Instance norm, dropout of channels and random slopes follow train() and eval() too."""
    parts: dict[str, nn.Module] = {
        "norm": nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        "drop": nn.Dropout2d(0.3),
        "alpha": nn.AlphaDropout(0.3),
        "slope": nn.RReLU(),
    }
    for name, part in parts.items():
        net = image_net(lambda net, y: net.part(y.reshape(-1, 384).reshape(-1, 6, 8, 8)), part=part)
        prepared = prepared64(net, image())
        prepared.zero_(choose(prepared, 0))
        model = geta.finish(prepared).model
        x = double(image())
        assert gap(run(prepared.model, x), run(model, x)) <= 1e-10, name
        assert gap(run(model, x), run(model, x, train=True)) > 1e-6, name


def test_behaviour_that_the_traced_graph_cannot_have_is_told() -> None:
    """What Python decides by self.training is fixed in the trace: the graph is that of eval mode, as reported."""

    class Stochastic(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            y = y.reshape(-1, 384).reshape(-1, 6, 8, 8)
            return y if self.training else 2 * y

    net = image_net(lambda net, y: net.inner(y), inner=Stochastic())
    prepared = prepared64(net, image())
    prepared.zero_(choose(prepared, 0))
    compressed = geta.finish(prepared)
    assert "train mode differ from the model's" in compressed.report.train_refusal
    x = double(image())
    assert gap(run(prepared.model, x), run(compressed.model, x)) <= 1e-10
    prepared = geta.prepare(randomise_(image_net(lambda net, y: y.relu())), image(), geta.CompressionConfig())
    assert geta.finish(prepared).report.native


class Rounding(nn.Module):
    """While it is exported it rounds its table to single precision, without asking whether it has to."""

    def __init__(self, resize: bool) -> None:
        super().__init__()
        self.resize = resize
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        table = self.table
        if self.resize or torch.compiler.is_exporting():
            table = table.float().to(table.dtype)
        return cast(Tensor, self.last((self.first(x) * table).relu()))


@pytest.mark.parametrize("resize", [False, True])
def test_a_forward_that_acts_otherwise_while_it_is_exported_is_not_told(resize: bool) -> None:
    """The graph is that of what the model computes, in either case, and nothing is left switched off."""
    torch.manual_seed(0)
    model, x = Rounding(resize).double(), torch.randn(4, 6, dtype=torch.float64)
    module = as_switchable(model, ExampleInputs.of((x,)))
    assert torch.equal(module(x), model(x))
    assert any(node.target is torch.ops.aten.to.dtype for node in module.graph.nodes) == resize
    assert not torch.compiler.is_exporting() and not model._forward_hooks and not model._forward_pre_hooks


def test_input_quantizers_are_exported_as_ever_beside_such_a_forward() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64)
    config = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8), initial_bits=8)
    prepared = geta.prepare(Rounding(False).double(), (x,), config)
    prepared.zero_(choose(prepared, 0))
    model = geta.finish(prepared).model
    module = as_switchable(model, ExampleInputs.of((x,)))
    assert gap([module(x)], [model(x)]) <= 1e-15
    assert sum(node.target is torch.ops.geta.fake_quantize.default for node in module.graph.nodes) == 2
