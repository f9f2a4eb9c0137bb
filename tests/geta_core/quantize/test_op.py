"""The operator and the Function: schema checks, gradients through autograd, torch.compile and torch.export."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from geta_core.quantize import FakeQuantize, Quantizer, fake_quantize, quantize, quantize_backward, step_for_bits
from tests.geta_core.quantize.nets import config, conv_net, gradients, quantized

CASES = [
    (signed, learn, per_channel) for signed in (True, False) for learn in (True, False) for per_channel in (True, False)
]


def arguments(signed: bool, learn: bool, per_channel: bool, grad: bool = True) -> list[Tensor | None]:
    x = torch.randn(4, 3, 5)
    q_m = torch.rand(4, 1, 1) + 0.5 if per_channel else torch.tensor(1.2)
    t = torch.full_like(q_m, 1.1) if learn else None
    d = step_for_bits(4, q_m, t, signed)
    return [None if value is None else value.requires_grad_(grad) for value in (x, d, q_m, t)]


@pytest.mark.parametrize(("signed", "learn", "per_channel"), CASES)
def test_opcheck(signed: bool, learn: bool, per_channel: bool) -> None:
    values = arguments(signed, learn, per_channel)
    torch.library.opcheck(torch.ops.geta.fake_quantize.default, (*values, signed))


def test_opcheck_of_the_backward_operator() -> None:
    values = arguments(True, True, True, grad=False)
    torch.library.opcheck(torch.ops.geta.fake_quantize_backward.default, (torch.randn(4, 3, 5), *values, True, False))


@pytest.mark.parametrize(("signed", "learn", "per_channel"), CASES)
@pytest.mark.parametrize("chain_rule", [False, True])
def test_operator_and_function_give_the_formulas(
    signed: bool, learn: bool, per_channel: bool, chain_rule: bool
) -> None:
    x, d, q_m, t = values = arguments(signed, learn, per_channel)
    g = torch.randn(4, 3, 5)
    expected = quantize_backward(g, *(None if v is None else v.detach() for v in values), signed, chain_rule)
    for function in (fake_quantize, FakeQuantize.apply):
        out = function(*values, signed, chain_rule)
        assert torch.equal(out, quantize(x, d, q_m, t, signed))
        got = torch.autograd.grad(out, [v for v in values if v is not None], g)
        want = [e for e in expected if e is not None]
        assert torch.equal(got[0], want[0])
        # The sums of 60 float32 terms of size 1 are added up in another order.
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(got[1:], want[1:], strict=True))


def test_second_derivative_is_refused() -> None:
    x, d, q_m, t = arguments(True, True, False)
    (first,) = torch.autograd.grad(FakeQuantize.apply(x, d, q_m, t, True, False).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_compiled_net_is_one_graph_and_equals_eager(learn: bool, recompute: bool) -> None:
    torch._dynamo.reset()
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    quantized(net, batch, config(learn_exponent=learn, learn_activation_exponent=learn, recompute=recompute))
    twin = copy.deepcopy(net)
    expected = gradients(net, batch)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(batch), net(batch))
    for got, want in zip(gradients(compiled, batch), expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)  # sums in another order


@pytest.mark.needs("compiler")
def test_inductor_compiles_a_quantized_net() -> None:
    torch._dynamo.reset()
    net, batch = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 6)
    quantized(net, batch, config(learn_activation_exponent=True))
    twin = copy.deepcopy(net)
    expected = gradients(net, batch)
    got = gradients(torch.compile(twin, fullgraph=True), batch)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_export_shows_one_node_per_quantizer(training: bool, recompute: bool) -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    quantized(net, batch, config(recompute=recompute))
    net.train(training)
    program = torch.export.export(net, (batch,), strict=False)
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.geta.fake_quantize.default]
    assert len(nodes) == 6
    assert not any("round" in str(node.target) for node in program.graph.nodes)
    net.eval()
    if not training:
        assert torch.equal(program.module()(batch), net(batch))


def test_function_and_operator_run_in_the_input_dtype_under_autocast() -> None:
    layer = nn.Linear(8, 8)
    quantized(layer, torch.randn(4, 8), config())
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(4, 8, dtype=torch.bfloat16))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


def test_quantizer_under_vmap_free_functional_call() -> None:
    quantizer = Quantizer(torch.tensor(1.0), 4)
    x = torch.randn(10)
    replaced = {name: value * 0.5 for name, value in quantizer.named_parameters()}
    out = torch.func.functional_call(quantizer, replaced, (x,))
    assert torch.equal(out, quantize(x, replaced["d"], replaced["q_m"], replaced["t"], True))
