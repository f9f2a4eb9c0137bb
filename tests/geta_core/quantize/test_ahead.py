"""Small weights quantized together at the start of the model's forward pass, against each in its layer's turn."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import geta_core as geta
from geta_core.quantize import Quantizer, ahead, kernels
from geta_core.quantize.attach import attach, bake_, detach_weight_
from geta_core.quantize.sites import QuantSite

CONFIG = geta.CompressionConfig(weight_bits=(4, 8))


class Net(nn.Module):
    """Three small layers, one used twice, and one that no input reaches."""

    def __init__(self, recompute: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.recompute = recompute

    def middle(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(x).relu()).relu()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        inner = self.middle(x) if self.recompute is None else checkpoint(self.middle, x, use_reentrant=self.recompute)
        return self.last(inner)  # type: ignore[no-any-return]


def quantized(net: nn.Module, config: geta.CompressionConfig = CONFIG) -> tuple[nn.Module, list[QuantSite]]:
    net = net.double()
    return net, attach(net, config)


def alone(net: nn.Module, sites: list[QuantSite]) -> nn.Module:
    """Return the net with every weight left to its layer."""
    for site in sites:
        assert site.ahead is not None
        site.ahead.forget_(site.quantizer)
    assert not net._forward_pre_hooks
    assert not net._forward_hooks
    return net


def inputs() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, loss: Callable[[nn.Module], Tensor] | None = None) -> list[Tensor | None]:
    net.zero_grad(set_to_none=True)
    (loss(net) if loss is not None else net(inputs()).square().sum()).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in net.parameters()]


def assert_same(got: list[Tensor | None], want: list[Tensor | None], shared: bool = False) -> None:
    """Compare bit by bit; for a weight used several times float64 sums in another order are off by a few eps."""
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14) if shared else torch.equal(a, b)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Count weights quantized ahead, and in their layer's turn."""
    seen = {"ahead": 0, "alone": 0}
    together, forward = ahead._together, kernels.forward
    inside = False

    def watched(*args: object) -> tuple[Tensor, ...]:
        nonlocal inside
        inside = True
        outs = together(*args)
        inside = False
        return outs

    def counting(*args: object) -> Tensor:
        seen["ahead" if inside else "alone"] += 1
        return forward(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ahead, "_together", watched)
        patch.setattr(kernels, "forward", counting)
        yield seen


@pytest.mark.parametrize("recompute", [None, False, True], ids=["plain", "checkpoint", "reentrant checkpoint"])
@pytest.mark.parametrize("learned", [True, False])
def test_same_bits_as_each_in_its_turn(recompute: bool | None, learned: bool) -> None:
    config = geta.CompressionConfig(weight_bits=(4, 8), learn_exponent=learned)
    ours, _ = quantized(Net(recompute), config)
    theirs = alone(*quantized(Net(recompute), config))
    for _ in range(3):
        assert torch.equal(ours(inputs()), theirs(inputs()))
        assert_same(gradients(ours), gradients(theirs), shared=True)
        with torch.no_grad():
            for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                if one.grad is not None:
                    other.copy_(one.sub_(1e-2 * one.grad))
    assert all(parameter.grad is None for parameter in ours.unused.parameters())  # type: ignore[union-attr]


def test_whole_step_per_channel_with_inputs_in_float32() -> None:
    config = geta.CompressionConfig(weight_bits=(4, 8), activation_bits=(4, 8), per_channel=True)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    x = torch.randn(2, 3, 6, 6)
    prepared = geta.prepare(net, x, config)
    other = copy.deepcopy(prepared)
    alone(other.model, [site for site in other.sites if site.kind == "weight"])
    assert_same(*(gradients(model, lambda m: m(x).square().sum()) for model in (prepared.model, other.model)))


def test_every_weight_is_taken_once_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net, sites = quantized(Net())
    with counted(monkeypatch) as seen:
        gradients(net)
    assert seen == {"ahead": len(sites), "alone": 0}
    with counted(monkeypatch) as seen, torch.no_grad():
        net(inputs())
    assert seen == {"ahead": len(sites), "alone": 0}
    assert all(site.quantizer.ready.made is None for site in sites)


def test_a_layer_called_by_itself_has_a_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net, sites = quantized(Net())
    net(inputs()).sum().backward()
    first = sites[0].module
    with counted(monkeypatch) as seen:
        for _ in range(2):
            first(inputs()).sum().backward()
    assert seen == {"ahead": 0, "alone": 2}


class Changing(nn.Module):
    """Changes a weight, or a grid, between the start of the forward pass and the layer that uses it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.what = nn.Linear(6, 4), nn.Linear(4, 3), what

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        entry = self.last.parametrizations.weight  # type: ignore[union-attr]
        with torch.no_grad():
            if self.what == "weight":
                entry.original.mul_(0.5)  # type: ignore[union-attr, operator]
            elif self.what == "grid":
                entry[0].d.mul_(2)  # type: ignore[index, union-attr]
            elif self.what == "result":
                self.last.weight.mul_(2)
        if self.what == "exchanged":
            with parametrize.cached():
                return torch.func.functional_call(
                    self.last, {"parametrizations.weight.original": torch.ones(3, 4, dtype=torch.float64)}, (x,)
                )
        return self.last(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", ["weight", "grid", "result", "exchanged"])
def test_what_changed_meanwhile_is_quantized_anew(what: str) -> None:
    ours, _ = quantized(Changing(what))
    theirs = alone(*quantized(Changing(what)))
    assert torch.equal(ours(inputs()), theirs(inputs()))
    assert_same(gradients(ours), gradients(theirs))


def test_changed_between_forward_and_backward_is_refused() -> None:
    net, _ = quantized(Net())
    loss = net(inputs()).sum()
    with torch.no_grad():
        net.first.parametrizations.weight.original.mul_(2)  # type: ignore[union-attr, operator]
    with pytest.raises(RuntimeError, match=r"changed in place after the forward pass; call backward\(\) before"):
        loss.backward()


def test_disjoint_parts_run_backward_one_by_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.other(x)

    def separately(net: nn.Module) -> list[Tensor | None]:
        net.zero_grad(set_to_none=True)
        one, other = net(inputs())
        one.square().sum().backward()
        assert all(parameter.grad is None for parameter in net.other.parameters())  # type: ignore[union-attr]
        other.square().sum().backward()
        return [parameter.grad for parameter in net.parameters()]

    assert_same(separately(quantized(Two())[0]), separately(alone(*quantized(Two()))))


def test_two_calls_before_one_backward_pass() -> None:
    def siamese(net: nn.Module) -> Tensor:
        return (net(inputs()) * net(2 * inputs())).sum()  # type: ignore[no-any-return]

    for recompute in (None, False, True):
        ours, theirs = quantized(Net(recompute))[0], alone(*quantized(Net(recompute)))
        assert_same(gradients(ours, siamese), gradients(theirs, siamese), shared=True)


def test_gradients_wanted_inside_a_call_without_them() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return self.two(self.one(x))  # type: ignore[no-any-return]

    net, sites = quantized(Inner())
    with torch.no_grad():
        out = net(inputs())
    out.sum().backward()
    assert all(site.parameter is not None and site.parameter.grad is not None for site in sites)


def test_functional_call_uses_the_given_weights() -> None:
    ours, theirs = quantized(Net())[0], alone(*quantized(Net()))
    given = {name: 1.5 * value.detach() for name, value in ours.named_parameters()}
    given["first.parametrizations.weight.original"].requires_grad_()
    results = [torch.func.functional_call(net, given, (inputs(),)) for net in (ours, theirs)]
    assert torch.equal(*results)
    source = given["first.parametrizations.weight.original"]
    assert torch.equal(*(torch.autograd.grad(out.sum(), source)[0] for out in results))


def test_a_gate_before_the_quantizer_is_respected() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x

    ours, theirs = quantized(Net())[0], alone(*quantized(Net()))
    for net in (ours, theirs):
        net.first.parametrizations.weight.insert(0, Half())  # type: ignore[union-attr, operator]
    assert_same(gradients(ours), gradients(theirs), shared=True)


def test_copies_and_pickles_stand_alone() -> None:
    net, sites = quantized(Net())
    net(inputs()).sum().backward()
    twin, own = copy.deepcopy((net, sites))
    assert own[0].ahead is not None
    assert own[0].ahead is not sites[0].ahead
    assert_same(gradients(twin), gradients(net))
    for site in own:
        detach_weight_(site)
    assert not twin._forward_pre_hooks
    assert not twin._forward_hooks
    assert len(net._forward_pre_hooks) == 1
    assert copy.deepcopy(net.first) is not None
    file = io.BytesIO()
    torch.save(sites[0].quantizer.state_dict(), file)
    assert not any("ready" in name for name in net.state_dict())


def test_baking_removes_the_hooks() -> None:
    net, sites = quantized(Net())
    want = net(inputs())
    bake_(net, sites)
    assert not net._forward_pre_hooks
    assert not net._forward_hooks
    assert torch.allclose(net(inputs()), want, rtol=1e-15)


def test_one_weight_or_recompute_needs_no_hooks() -> None:
    for net, config in (
        (nn.Sequential(nn.Linear(6, 3)), CONFIG),
        (Net(), geta.CompressionConfig(weight_bits=(4, 8), recompute=True)),
    ):
        assert all(site.ahead is None for site in attach(net, config))
        assert not net._forward_pre_hooks


def test_large_weights_are_left_to_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(6, 300), nn.Linear(300, 300), nn.Linear(300, 3))
    attach(net, CONFIG)
    with counted(monkeypatch) as seen:
        net(torch.randn(2, 6))
    assert seen == {"ahead": 2, "alone": 1}


@pytest.mark.needs("compiler")
def test_a_compiled_model_does_not_see_the_hooks() -> None:
    net, _ = quantized(Net())
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True)
    assert torch.allclose(compiled(inputs()), net(inputs()), rtol=1e-12)


def test_threads_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    net, _ = quantized(Net())
    want = net(inputs())
    results: list[Tensor] = []

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    barrier = threading.Barrier(2)
    net.first.register_forward_hook(lambda *_: (barrier.wait(10), None)[1])

    def work() -> None:
        out = net(inputs())
        out.sum().backward()
        results.append(out.detach())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(torch.equal(result, want) for result in results)


def test_a_quantizer_by_itself_never_looks_ahead() -> None:
    quantizer = Quantizer(torch.tensor(1.0), 4)
    x = torch.randn(10)
    assert quantizer.ready.made is None
    assert torch.equal(quantizer(x), quantizer(x))
