"""The module: bits, ranges, state, dtypes, copies."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geta_core.quantize import Quantizer, levels, quantize
from tests.geta_core.quantize.nets import config, conv_net, quantized


@given(bits=st.integers(2, 16), q_m=st.floats(1e-3, 100), t=st.floats(0.5, 1.5), signed=st.booleans())
def test_set_bits_gives_exactly_these_bits(bits: int, q_m: float, t: float, signed: bool) -> None:
    quantizer = Quantizer(torch.tensor(q_m), 16, signed=signed)
    assert quantizer.t is not None
    with torch.no_grad():
        quantizer.t.fill_(t)
    assert quantizer.set_bits_(bits) is quantizer
    assert quantizer.bits().item() == bits
    x = torch.linspace(-1.2 * q_m, 1.2 * q_m, 3001)
    used = levels(x, quantizer.d, quantizer.q_m, quantizer.t, signed).abs().max().item()
    assert used == 2 ** (bits - 1 if signed else bits) - 1


def test_starts_at_the_given_bits_per_channel() -> None:
    quantizer = Quantizer(torch.rand(5, 1, 1) + 0.1, 7, channel_axis=0)
    assert quantizer.bits().shape == quantizer.d.shape == (5, 1, 1)
    assert quantizer.bits().unique().tolist() == [7.0]
    quantizer.set_bits_(torch.tensor([2.0, 3, 4, 5, 6]).view(5, 1, 1))
    assert quantizer.bits().flatten().tolist() == [2, 3, 4, 5, 6]


def test_set_range_keeps_the_bits() -> None:
    quantizer = Quantizer(torch.tensor(1.0), 5)
    quantizer.set_range_(3.0)
    assert quantizer.q_m.item() == 3.0
    assert quantizer.bits().item() == 5


@pytest.mark.parametrize("learn", [True, False])
def test_parameters_and_missing_exponent(learn: bool) -> None:
    quantizer = Quantizer(torch.tensor(1.0), 5, learn_exponent=learn)
    assert [name for name, _ in quantizer.named_parameters()] == (["d", "q_m", "t"] if learn else ["d", "q_m"])
    assert (quantizer.t is not None) == learn
    assert "signed=True" in repr(quantizer)


def test_state_dict_carries_values_and_the_kind_of_grid(tmp_path: Path) -> None:
    source = Quantizer(torch.tensor(2.0), 4, signed=False)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    target = Quantizer(torch.tensor(1.0), 8)
    target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not target.signed
    x = torch.randn(50)
    assert torch.equal(target(x), source(x))


def test_deepcopy_is_independent() -> None:
    source = Quantizer(torch.tensor(2.0), 4, signed=False, learn_exponent=False, channel_axis=None, recompute=True)
    twin = copy.deepcopy(source)
    twin.set_bits_(2)
    assert source.bits().item() == 4
    assert (twin.signed, twin.recompute, twin.t) == (False, True, None)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_parameters_stay_wide_in_every_model_dtype(cast: str) -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    sites = quantized(net, batch, config(bits=16))
    getattr(net, cast)()
    wide = torch.float64 if cast == "double" else torch.float32
    for site in sites:
        assert {parameter.dtype for parameter in site.quantizer.parameters()} == {wide}
        # double() keeps the values, so that q_m^t/d still carries the rounding of float32.
        assert site.quantizer.bits().item() == pytest.approx(16, abs=1e-6 if cast == "double" else 0)
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}[cast]
    if cast != "half":
        assert net(batch.to(dtype)).dtype == dtype
    assert sites[0].parameter is not None
    assert sites[0].parameter.dtype == net[0].weight.dtype == dtype


def test_device_moves_along() -> None:
    quantizer = Quantizer(torch.tensor(2.0), 4).to("meta")
    assert quantizer.d.device.type == "meta"
    assert quantizer.d.dtype == torch.float32


def test_method_levels_equals_the_formula() -> None:
    quantizer = Quantizer(torch.tensor(1.0), 5)
    x = torch.randn(100)
    n = quantizer.levels(x)
    assert not n.requires_grad
    assert torch.equal(n * quantizer.d, quantizer(x))


def test_no_gradient_is_missing_under_ddp(tmp_path: Path) -> None:
    """DDP raises at the second step when a parameter got no gradient in the first."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net, batch = conv_net(), torch.randn(4, 3, 8, 8)
        quantized(net, batch, config(recompute=True))
        parallel = nn.parallel.DistributedDataParallel(net)
        for _ in range(3):
            parallel(batch).square().mean().backward()
    finally:
        dist.destroy_process_group()


def test_chain_rule_option_reaches_the_gradient() -> None:
    plain, chained = Quantizer(torch.tensor(2.0), 6), Quantizer(torch.tensor(2.0), 6, chain_rule=True)
    gradients = []
    for quantizer in (plain, chained):
        assert quantizer.t is not None
        with torch.no_grad():
            quantizer.t.fill_(1.5)
        x = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
        quantizer(x).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert gradients[0].tolist() == [1.0, 1.0, 0.0]
    assert torch.allclose(gradients[1], torch.tensor([1.5 * 0.5**0.5, 1.5, 0.0]))


def test_quantized_value_of_a_module_equals_the_formula_in_a_layer() -> None:
    layer = nn.Linear(4, 3)
    original = layer.weight.detach().clone()
    batch = torch.rand(5, 4)
    weight, data = quantized(layer, batch, config(bits=3))
    q, p = weight.quantizer, data.quantizer
    assert not p.signed
    expected = nn.functional.linear(
        quantize(batch, p.d, p.q_m, p.t, False), quantize(original, q.d, q.q_m, q.t, True), layer.bias
    )
    assert torch.equal(layer(batch), expected)
