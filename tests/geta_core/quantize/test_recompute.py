"""Recomputed x^Q: identical gradients, fewer bytes kept, robust against errors, copies and compilers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from geta_core.quantize import recompute
from tests.geta_core.quantize.nets import Tied, block_size, config, conv_net, gradients, quantized


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolutions": (conv_net, lambda: torch.randn(4, 3, 8, 8)),
    "channels_last": (conv_net, lambda: torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)),
    "encoder": (encoder, lambda: torch.randn(3, 5, 8)),
    "tied": (Tied, lambda: torch.randint(0, 11, (2, 3))),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), lambda: torch.randn(4, 3, 8, 8)),
}


def kept_bytes(model: nn.Module, batch: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the bytes of the distinct storages that are kept for the backward pass, parameters excluded."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def record(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    pack = recompute._Frame.pack

    def recording_pack(frame: recompute._Frame, tensor: Tensor) -> object:
        packed = pack(frame, tensor)
        if isinstance(packed, recompute._Kept):
            record(packed.tensor)
        return packed

    with monkeypatch.context() as patch:
        patch.setattr(recompute._Frame, "pack", recording_pack)
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            output = model(batch)
    del output
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_gradients_are_identical(name: str, learn: bool, per_channel: bool) -> None:
    make, data = CASES[name]
    plain, batch = make(), data()
    lean = copy.deepcopy(plain)
    options = {"learn_exponent": learn, "learn_activation_exponent": learn, "per_channel": per_channel}
    with block_size(64):
        quantized(plain, batch, config(**options))
        quantized(lean, batch, config(recompute=True, **options))
        want, got = gradients(plain, batch), gradients(lean, batch)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert recompute._frames.stack == []


@pytest.mark.parametrize("name", ["convolutions", "encoder", "transposed"])
def test_no_quantized_tensor_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = CASES[name]
    plain, batch = make(), data()
    lean = copy.deepcopy(plain)
    sites = quantized(plain, batch, config())
    quantized(lean, batch, config(recompute=True))
    shapes: list[int] = []
    for site in sites:
        site.quantizer.register_forward_hook(lambda module, args, out: shapes.append(out.numel() * out.element_size()))
    saved = kept_bytes(plain, batch, monkeypatch) - kept_bytes(lean, batch, monkeypatch)
    assert saved == sum(shapes) > 0


def test_frame_is_closed_when_the_forward_raises() -> None:
    net = conv_net()
    quantized(net, torch.randn(4, 3, 8, 8), config(recompute=True))
    assert not hooks_are_active()
    with pytest.raises(RuntimeError):
        net(torch.randn(4, 2, 8, 8))
    assert recompute._frames.stack == []
    assert not hooks_are_active()
    gradients(net, torch.randn(4, 3, 8, 8))
    assert not hooks_are_active()


def hooks_are_active() -> bool:
    """Tell whether saved tensors pass through hooks now: a saved tensor takes only one pair of them."""
    made = torch.randn(3, requires_grad=True).exp().grad_fn
    assert made is not None
    try:
        made._raw_saved_result.register_hooks(lambda tensor: tensor, lambda tensor: tensor)
    except RuntimeError:
        return True
    return False


def test_the_probe_for_hooks_sees_them() -> None:
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        assert hooks_are_active()


@pytest.mark.parametrize("what", ["step", "input"])
def test_changes_in_place_are_noticed(what: str) -> None:
    layer = nn.Linear(4, 3)
    sites = quantized(layer, torch.randn(5, 4), config(recompute=True))
    source = torch.randn(5, 4, requires_grad=True)
    x = source * 1
    loss = layer(x).square().sum()
    with torch.no_grad():
        (sites[1].quantizer.d if what == "step" else x).mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_changes_are_noticed_where_only_the_layer_runs_backward() -> None:
    """Then the quantizer's own backward, which would notice them too, does not run."""
    layer = nn.Linear(4, 3)
    quantized(layer, torch.randn(5, 4), config(weights=False, recompute=True))
    x = torch.randn(5, 4)
    loss = layer(x).square().sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(loss, layer.weight)


def test_other_saved_tensors_are_checked_for_changes_too() -> None:
    class Product(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            self.mid = super().forward(input).exp()
            return self.mid * self.mid

    layer = Product(4, 3)
    quantized(layer, torch.randn(5, 4), config(recompute=True))
    loss = layer(torch.randn(5, 4)).sum()
    with torch.no_grad():
        layer.mid.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_nothing_happens_without_gradients() -> None:
    layer = nn.Linear(4, 3)
    quantized(layer, torch.randn(5, 4), config(recompute=True))
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(bool(recompute._frames.stack)))
    with torch.no_grad():
        layer(torch.randn(5, 4))
    layer(torch.randn(5, 4))
    assert seen == [False, True]


def test_backward_twice_with_a_retained_graph() -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    quantized(net, batch, config(recompute=True))
    loss = net(batch).square().mean()
    first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_under_checkpointing_the_gradients_stay_the_same() -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    net[1] = nn.Identity()  # batch statistics would be updated twice
    quantized(net, batch, config(recompute=True))
    want = gradients(net, batch)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            result = torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)
            assert isinstance(result, Tensor)
            return result

    assert all(torch.equal(a, b) for a, b in zip(gradients(Checkpointed(), batch), want, strict=True))


def test_a_copy_of_a_copy_still_recomputes(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    quantized(net, batch, config(recompute=True))
    twin = copy.deepcopy(copy.deepcopy(net))
    assert kept_bytes(twin, batch, monkeypatch) == kept_bytes(net, batch, monkeypatch)
