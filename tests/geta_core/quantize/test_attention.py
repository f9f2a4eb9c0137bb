"""The drop-in against torch.nn.MultiheadAttention in every mode, and with heads removed."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geta_core.quantize import Attention, attach, calibrate_, replace_attention_
from tests.geta_core.quantize.nets import config

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
L, S, N, E, H = 5, 4, 3, 8, 2


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.MultiheadAttention, Attention]:
    plain = nn.MultiheadAttention(E, H, dtype=dtype, **options)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    drop_in = copy.deepcopy(plain)
    assert replace_attention_(drop_in) == [drop_in]
    assert isinstance(drop_in, Attention)
    return plain, drop_in


def inputs(kind: str, batch_first: bool, dtype: torch.dtype, widths: tuple[int, int] = (E, E)) -> list[Tensor]:
    if kind == "self":
        x = torch.randn((N, L, E) if batch_first else (L, N, E), dtype=dtype)
        return [x, x, x]
    if kind == "unbatched":
        return [torch.randn(size, dtype=dtype) for size in ((L, E), (S, widths[0]), (S, widths[1]))]
    order = (lambda n, width: (N, n, width)) if batch_first else (lambda n, width: (n, N, width))
    return [torch.randn(order(n, width), dtype=dtype) for n, width in ((L, E), (S, widths[0]), (S, widths[1]))]


def check(plain: nn.Module, drop_in: nn.Module, values: list[Tensor], **call: Any) -> None:
    results = []
    for module in (plain, drop_in):
        module.zero_grad()
        torch.manual_seed(5)
        output, weights = module(*values, **call)
        output.square().sum().backward()
        results.append((output, weights, [parameter.grad for parameter in module.parameters()]))
    (want, want_weights, want_grads), (got, got_weights, got_grads) = results
    close(got, want)
    assert (got_weights is None) == (want_weights is None)
    if want_weights is not None:
        close(got_weights, want_weights)
    for a, b in zip(got_grads, want_grads, strict=True):
        close(a, b)


def close(got: Tensor, want: Tensor) -> None:
    """Sums of at most 20 products in another order, relative to the largest value: cancellation is no error."""
    assert got.shape == want.shape
    assert (got - want).abs().max() <= TOLERANCE[want.dtype] * want.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "unbatched"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_equals_torch(dtype: torch.dtype, batch_first: bool, kind: str, need_weights: bool, training: bool) -> None:
    plain, drop_in = pair(dtype, batch_first=batch_first)
    plain.train(training)
    drop_in.train(training)
    for average in (True, False):
        check(plain, drop_in, inputs(kind, batch_first, dtype), need_weights=need_weights, average_attn_weights=average)


def padding(kind: str, dtype: torch.dtype) -> Tensor | None:
    mask = torch.zeros(N, S, dtype=torch.bool)
    mask[0, -1] = mask[1, -2:] = True
    return {"none": None, "bool": mask, "float": torch.randn(N, S, dtype=dtype)}[kind]


def scores(kind: str, dtype: torch.dtype) -> Tensor | None:
    if kind == "none":
        return None
    shape = (L, S) if kind.endswith("2") else (N * H, L, S)
    values = torch.randn(shape, dtype=dtype)
    return values > 1.5 if kind.startswith("bool") else values


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("extras", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"bias": False}])
@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_equal_torch(extras: dict[str, bool], need_weights: bool) -> None:
    dtype = torch.float64
    plain, drop_in = pair(dtype, batch_first=True, **extras)
    values = inputs("cross", True, dtype)
    kinds = itertools.product(("none", "bool", "float"), ("none", "bool2", "float2", "bool3", "float3"))
    for keys, mask in kinds:
        call = {"key_padding_mask": padding(keys, dtype), "attn_mask": scores(mask, dtype)}
        check(plain, drop_in, values, need_weights=need_weights, **call)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_causal_hint_equals_torch(need_weights: bool, padded: bool) -> None:
    plain, drop_in = pair(batch_first=True)
    values = inputs("self", True, torch.float64)
    mask = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
    keys = torch.zeros(N, L, dtype=torch.bool)
    keys[0, -1] = True
    call = {"key_padding_mask": keys if padded else None, "attn_mask": mask, "is_causal": True}
    check(plain, drop_in, values, need_weights=need_weights, **call)
    with pytest.raises(RuntimeError, match="attn_mask"):
        drop_in(*values, is_causal=True)


@pytest.mark.parametrize("need_weights", [True, False])
def test_unbatched_masks_equal_torch(need_weights: bool) -> None:
    plain, drop_in = pair()
    call = {"key_padding_mask": torch.tensor([False, False, True, False]), "attn_mask": torch.randn(H, L, S) > 1.5}
    check(plain, drop_in, inputs("unbatched", False, torch.float64), need_weights=need_weights, **call)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["cross", "unbatched"])
def test_own_key_and_value_widths_equal_torch(bias: bool, kind: str) -> None:
    plain, drop_in = pair(batch_first=True, kdim=6, vdim=7, bias=bias)
    check(plain, drop_in, inputs(kind, True, torch.float64, (6, 7)))


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_draws_the_same_numbers(need_weights: bool) -> None:
    plain, drop_in = pair(batch_first=True, dropout=0.4)
    values = inputs("self", True, torch.float64)
    check(plain, drop_in, values, need_weights=need_weights)
    first, second = drop_in(*values)[0], drop_in(*values)[0]
    assert not torch.equal(first, second)
    drop_in.eval()
    assert torch.equal(drop_in(*values)[0], drop_in(*values)[0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_wrong_masks_and_nested_tensors_are_refused() -> None:
    _, drop_in = pair(torch.float32, batch_first=True)
    x = torch.randn(N, L, E)
    with pytest.raises(TypeError, match=r"boolean or floating-point.*int64"):
        drop_in(x, x, x, attn_mask=torch.zeros(L, L, dtype=torch.long))
    nested = torch.nested.nested_tensor([torch.randn(2, E), torch.randn(3, E)])
    with pytest.raises(ValueError, match="nested"):
        drop_in(nested, nested, nested)


def test_replacement_is_in_place() -> None:
    model = nn.Sequential(nn.MultiheadAttention(E, H), nn.Linear(E, E)).eval()
    model[0].train()
    module, parameters, names = model[0], list(model.parameters()), list(model.state_dict())
    assert replace_attention_(model) == [module]
    assert replace_attention_(model) == []
    assert model[0] is module
    assert module.training
    assert not model[1].training
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    assert isinstance(twin[0], Attention)
    assert twin[0].scale == module.scale


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("bias_kv", [True, False])
def test_removing_whole_heads_equals_zeroing_them(need_weights: bool, bias_kv: bool) -> None:
    heads, width = 4, 2
    full = nn.MultiheadAttention(E, heads, batch_first=True, dtype=torch.float64, add_bias_kv=bias_kv)
    for parameter in full.parameters():
        nn.init.normal_(parameter)
    replace_attention_(full)
    kept = [0, 2]
    rows = [head * width + i for head in kept for i in range(width)]
    small = copy.deepcopy(full)
    cut(small, rows, E)
    small.num_heads = len(kept)
    dead = [i for i in range(E) if i not in rows]
    with torch.no_grad():
        full.out_proj.weight[:, dead] = 0
    x = torch.randn(N, L, E, dtype=torch.float64)
    want, got = full(x, x, x, need_weights=need_weights)[0], small(x, x, x, need_weights=need_weights)[0]
    assert got.shape == want.shape
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def cut(module: nn.MultiheadAttention, rows: list[int], width: int) -> None:
    thirds = [third * width + row for third in range(3) for row in rows]
    module.in_proj_weight = nn.Parameter(module.in_proj_weight.detach()[thirds])
    module.in_proj_bias = nn.Parameter(module.in_proj_bias.detach()[thirds])
    module.out_proj.weight = nn.Parameter(module.out_proj.weight.detach()[:, rows])
    if module.bias_k is not None and module.bias_v is not None:
        module.bias_k = nn.Parameter(module.bias_k.detach()[..., rows])
        module.bias_v = nn.Parameter(module.bias_v.detach()[..., rows])


@pytest.mark.parametrize("need_weights", [True, False])
def test_removing_indices_inside_heads_keeps_the_scale(need_weights: bool) -> None:
    heads, width = 2, 4
    full = nn.MultiheadAttention(E, heads, batch_first=True, dtype=torch.float64)
    nn.init.normal_(full.in_proj_bias)
    replace_attention_(full)
    rows = [head * width + i for head in range(heads) for i in (0, 3)]
    small = copy.deepcopy(full)
    cut(small, rows, E)
    dead = [third * E + i for third in range(3) for i in range(E) if i not in rows]
    with torch.no_grad():
        full.in_proj_weight[dead] = 0
        full.in_proj_bias[dead] = 0
    x = torch.randn(N, L, E, dtype=torch.float64)
    want, got = full(x, x, x, need_weights=need_weights)[0], small(x, x, x, need_weights=need_weights)[0]
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_inside_an_encoder(norm_first: bool, batch_first: bool, grad: bool) -> None:
    """Eval without gradients is where torch's encoder takes its fast path, and with padding its nested tensors."""
    layer = nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=batch_first, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first).eval()
    x = torch.randn((N, L, E) if batch_first else (L, N, E))
    mask = torch.zeros(N, L, dtype=torch.bool)
    mask[0, -2:] = True
    with torch.enable_grad():
        want = encoder(x, src_key_padding_mask=mask)
    replace_attention_(encoder)
    calls = []
    encoder.layers[1].self_attn.out_proj.register_forward_pre_hook(lambda module, args: calls.append(1))
    with torch.set_grad_enabled(grad):
        got = encoder(x, src_key_padding_mask=mask)
    assert torch.allclose(got, want, atol=1e-6)
    assert calls == [1]


def test_inside_a_decoder() -> None:
    decoder = nn.TransformerDecoderLayer(E, H, 16, 0.0, batch_first=True).eval()
    x, memory = torch.randn(N, L, E), torch.randn(N, S, E)
    want = decoder(x, memory)
    assert len(replace_attention_(decoder)) == 2
    assert torch.allclose(decoder(x, memory), want, atol=1e-6)


@pytest.mark.parametrize("by_keyword", [True, False])
def test_quantized_inputs_are_made_once_per_tensor(by_keyword: bool) -> None:
    _, module = pair(torch.float32, batch_first=True)
    sites = attach(module, config(bits=4))
    x, y = torch.randn(N, L, E), torch.randn(N, L, E)
    calibrate_(module, sites, [x], lambda net, batch: net(batch, batch, batch))
    seen: list[int] = []
    module.input_quantizer.register_forward_hook(lambda *_: seen.append(1))

    def run(query: Tensor, key: Tensor, value: Tensor) -> None:
        seen.clear()
        if by_keyword:
            module(query, value=value, key=key, need_weights=False)
        else:
            module(query, key, value)

    for values, calls in (((x, x, x), 1), ((x, y, y), 2), ((x, y, y + 1), 3)):
        run(*values)
        assert len(seen) == calls


def test_export_and_compile() -> None:
    torch._dynamo.reset()
    encoder = nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True)
    sites = attach(encoder, config())
    x = torch.randn(N, L, E)
    calibrate_(encoder, sites, [x], lambda net, batch: net(batch))
    program = torch.export.export(encoder, (x,), strict=False)
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.geta.fake_quantize.default]
    assert len(nodes) == len(sites) == 8
    assert torch.equal(torch.compile(encoder, fullgraph=True, backend="aot_eager")(x), encoder(x))
