"""Quantizers on every kind of layer, ties, refusals, copies, baking and detaching."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from geta_core.errors import UnsupportedOpError
from geta_core.quantize import Attention, Quantizer, attach, bake_, calibrate_, detach_input_, detach_weight_, quantize
from tests.geta_core.quantize.nets import Tied, config, conv_net, gradients, quantized

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "Linear": (lambda: nn.Linear(4, 6), (3, 4), 0),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 7), 0),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 7), 0),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), (3, 4, 5, 5, 5), 0),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (3, 4, 7), 1),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (3, 4, 7, 7), 1),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 6, 2), (3, 4, 5, 5, 5), 1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_layer(name: str, per_channel: bool, recompute: bool) -> None:
    make, shape, axis = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    original = layer.weight.detach().clone()
    weight, data = quantized(layer, x, config(bits=4, per_channel=per_channel, recompute=recompute))
    assert (weight.name, weight.kind, weight.parameter_name, data.name, data.kind) == (
        *("weight", "weight", "weight"),
        *("input", "input"),
    )
    q = weight.quantizer
    expected_shape = tuple(n if i == axis else 1 for i, n in enumerate(original.shape)) if per_channel else ()
    assert q.d.shape == q.q_m.shape == expected_shape
    assert q.channel_axis == (axis if per_channel else None)
    assert torch.equal(
        q.q_m.detach(),
        original.abs().amax([i for i in range(original.dim()) if not per_channel or i != axis], keepdim=per_channel),
    )
    assert torch.equal(layer.weight, quantize(original, q.d, q.q_m, q.t, True))
    assert weight.parameter is layer.parametrizations.weight.original
    assert weight.numel == original.numel()
    twin = make()
    twin.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias})
    assert torch.equal(layer(x), twin(data.quantizer(x)))
    assert all(gradient.isfinite().all() for gradient in gradients(layer, x))


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("per_channel", [True, False])
def test_hugging_face_conv1d(per_channel: bool) -> None:
    from transformers.pytorch_utils import Conv1D

    layer, x = Conv1D(6, 4), torch.randn(3, 4)
    original = layer.weight.detach().clone()
    weight, data = quantized(layer, x, config(bits=4, per_channel=per_channel))
    q = weight.quantizer
    assert q.d.shape == ((1, 6) if per_channel else ())
    assert torch.equal(layer(x), torch.addmm(layer.bias, data.quantizer(x), quantize(original, q.d, q.q_m, q.t, True)))


@pytest.mark.needs("transformers")
def test_hugging_face_language_model_with_tied_embedding() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()
    names = set(model.state_dict())
    ids = torch.randint(0, 50, (2, 7))
    sites = attach(model, config(bits=16, learn_exponent=False))
    calibrate_(model, sites, [ids], lambda module, batch: module(batch))
    assert {site.name for site in sites if site.kind == "weight"} == {
        *(f"transformer.h.0.{layer}.weight" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
        "lm_head.weight",
    }
    assert all(site.fired for site in sites)
    (head,) = [site for site in sites if site.name == "lm_head.weight"]
    assert len(head.owners) == 2
    before = model(ids).logits
    bake_(model, sites)
    assert torch.equal(model(ids).logits, before)
    for site in sites:
        detach_input_(site)
    model.tie_weights()
    assert set(model.state_dict()) == names
    assert model.lm_head.weight is model.transformer.wte.weight


def test_names_order_and_kinds() -> None:
    net = conv_net()
    sites = attach(net, config())
    names = [site.name for site in sites]
    assert names == ["0.weight", "3.weight", "5.weight", "0.input", "3.input", "5.input"]
    assert [site.module_name for site in sites] == ["0", "3", "5"] * 2
    assert attach(conv_net(), config(inputs=False))[-1].name == "5.weight"
    assert [site.kind for site in attach(conv_net(), config(weights=False))] == ["input"] * 3
    assert attach(conv_net(), config(weights=False, inputs=False)) == []


def test_exponents_follow_the_configuration() -> None:
    sites = attach(conv_net(), config(learn_exponent=False, learn_activation_exponent=True))
    assert all((site.quantizer.t is None) == (site.kind == "weight") for site in sites)


def test_all_zero_weights_and_channels_get_a_positive_range() -> None:
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight.zero_()
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight[1, 2] = -0.5
    assert attach(layer, config(inputs=False))[0].quantizer.q_m.item() == 1.0
    assert torch.equal(layer.weight, torch.zeros(4, 3))
    per_channel = attach(twin, config(inputs=False, per_channel=True))[0].quantizer
    assert per_channel.q_m.flatten().tolist() == [0.5] * 4


def test_one_module_at_two_places_is_one_site() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    sites = quantized(net, torch.randn(2, 4), config())
    assert [site.name for site in sites] == ["0.weight", "0.input"]
    assert sites[1].numel == 8  # four features, twice per example
    gradients(net, torch.randn(2, 4))


@pytest.mark.parametrize("per_channel", [True, False])
def test_tied_weights_share_one_quantizer(per_channel: bool) -> None:
    net, index = Tied(), torch.randint(0, 11, (2, 3))
    (site,) = attach(net, config(inputs=False, per_channel=per_channel, recompute=True))
    assert site.name == "head.weight"
    assert site.owners == ((net.embedding, "weight"), (net.head, "weight"))

    def tied(model: Tied) -> bool:
        lists = [layer.parametrizations.weight for layer in (model.embedding, model.head)]
        return lists[0].original is lists[1].original and lists[0][0] is lists[1][0]

    assert tied(net)
    assert tied(copy.deepcopy(net))
    assert [name for name, _ in net.named_parameters()] == [
        f"embedding.parametrizations.weight.{name}" for name in ("original", "0.d", "0.q_m", "0.t")
    ]
    gradients(net, index)
    assert torch.equal(net.embedding.weight, net.head.weight)


def test_two_layers_of_one_weight_are_one_site() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    weight, *inputs = quantized(net, torch.randn(3, 4), config())
    assert [site.name for site in (weight, *inputs)] == ["0.weight", "0.input", "2.input"]
    assert weight.owners == ((net[0], "weight"), (net[2], "weight"))
    assert len(net[0].parametrizations.weight) == len(net[2].parametrizations.weight) == 1
    gradients(net, torch.randn(3, 4))


@pytest.mark.parametrize("exponent", [1.0, 1.3])
def test_baking_keeps_values_ties_and_parameters(exponent: float) -> None:
    net, index = Tied(), torch.randint(0, 11, (2, 3))
    parameter = net.head.weight
    (site,) = attach(net, config(inputs=False, bits=3))
    assert site.quantizer.t is not None
    with torch.no_grad():
        site.quantizer.t.fill_(exponent)
    expected = net(index)
    values = site.quantizer.levels(parameter) * site.quantizer.d
    bake_(net, [site])
    assert net.head.weight is net.embedding.weight is parameter is site.parameter
    assert torch.equal(parameter, values)
    assert torch.equal(net(index), expected)
    assert type(net.head) is nn.Linear
    assert type(net.embedding) is nn.Embedding
    assert list(net.state_dict()) == ["embedding.weight", "head.weight"]
    assert net.head.weight.requires_grad


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("inputs_first", [True, False])
def test_baking_and_detaching_restore_the_plain_model(recompute: bool, inputs_first: bool) -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    names, classes = set(net.state_dict()), [type(module) for module in net.modules()]
    sites = quantized(net, batch, config(recompute=recompute))
    for step in (1, 2) if inputs_first else (2, 1):
        if step == 2:
            bake_(net, sites)
        for site in sites:
            if step == 1 and site.kind == "input":
                detach_input_(site)
                detach_input_(site)
        net(batch).sum().backward()
    assert set(net.state_dict()) == names
    assert [type(module) for module in net.modules()] == classes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    assert torch.equal(copy.deepcopy(net)(batch), net(batch))


def test_detaching_everything_gives_the_float_model_back() -> None:
    net, index = Tied(), torch.randint(0, 11, (2, 3))
    expected, parameter = net(index), net.head.weight
    for site in attach(net, config(recompute=True)):
        (detach_weight_ if site.kind == "weight" else detach_input_)(site)
        (detach_weight_ if site.kind == "weight" else detach_input_)(site)
    assert net.head.weight is net.embedding.weight is parameter
    assert torch.equal(net(index), expected)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_baking_a_copy_leaves_the_original_alone() -> None:
    """A deep copy shares the class that holds the parametrized property; removing it there would break the original."""
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    sites = quantized(net, batch, config())
    expected = net(batch)
    twin, twin_sites = copy.deepcopy((net, sites))
    bake_(net, twin_sites)  # sites of another model: nothing happens
    assert parametrize.is_parametrized(net[0], "weight")
    bake_(twin, twin_sites)
    for site in twin_sites:
        if site.kind == "input":
            detach_input_(site)
    assert torch.equal(net(batch), expected)
    assert all(parametrize.is_parametrized(net[i], "weight") for i in (0, 3, 5))
    assert net[0].input_quantizer is sites[3].quantizer
    assert not hasattr(twin[0], "input_quantizer")
    assert not torch.equal(twin(batch), expected)  # its inputs are float now
    gradients(net, batch)


def test_deepcopy_before_training_is_independent_and_complete() -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    quantized(net, batch, config(recompute=True))
    twin = copy.deepcopy(net)
    assert torch.equal(twin(batch), net(batch))
    with torch.no_grad():
        twin[0].input_quantizer.d.mul_(50)
        twin[3].parametrizations.weight[0].d.mul_(50)
    assert not torch.equal(twin(batch), net(batch))


def test_state_dict_round_trip() -> None:
    net, batch = conv_net(), torch.randn(4, 3, 8, 8)
    quantized(net, batch, config())
    other = conv_net()
    attach(other, config())
    other.load_state_dict(net.state_dict())
    assert [m.signed for m in other.modules() if isinstance(m, Quantizer)] == [
        m.signed for m in net.modules() if isinstance(m, Quantizer)
    ]
    assert torch.equal(other(batch), net(batch))


class TwoInputs(nn.Linear):
    def forward(self, input: Tensor, *, scale: Tensor) -> Tensor:
        return super().forward(input) * scale


def test_only_the_first_input_is_quantized_by_position_or_keyword() -> None:
    layer = TwoInputs(4, 3)
    sites = attach(layer, config(bits=2))
    calibrate_(layer, sites, [torch.randn(5, 4)], lambda module, x: module(x, scale=torch.tensor(0.3)))
    x, scale = torch.randn(5, 4), torch.tensor(0.37)
    expected = F.linear(sites[1].quantizer(x), layer.weight, layer.bias) * scale
    assert torch.equal(layer(x, scale=scale), expected)
    assert torch.equal(layer(input=x, scale=scale), expected)


def test_integer_inputs_are_left_alone() -> None:
    class Counts(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            assert input.dtype == torch.long
            return super().forward(input.float())

    layer = Counts(4, 3)
    sites = quantized(layer, torch.arange(8).view(2, 4), config())
    assert layer(torch.arange(8).view(2, 4)).shape == (2, 3)
    assert not sites[1].fired


def test_user_hooks_that_run_before_are_respected() -> None:
    layer = nn.Linear(4, 3)
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 0 + 1,))
    sites = quantized(layer, torch.randn(5, 4), config())
    assert sites[1].quantizer.q_m.item() == 1.0


def parametrized() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(3, 3))


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(3, 3))


def prepared_before() -> nn.Module:
    layer = nn.Linear(3, 3)
    attach(layer, config())
    return layer


def inputs_prepared_before() -> nn.Module:
    layer = nn.Linear(3, 3)
    attach(layer, config(weights=False))
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (parametrized, "already parametrized"),
        (old_weight_norm, "a hook computes it"),
        (prepared_before, "prepared only once"),
        (inputs_prepared_before, "prepared only once"),
        (lambda: nn.LazyLinear(3), "no shape yet"),
    ],
)
def test_refusals_leave_the_model_as_it_was(make: Callable[[], nn.Module], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.ModuleDict({"first": nn.MultiheadAttention(4, 2), "bad": make()})
    names, count = list(net.state_dict()), len(list(net.modules()))
    with pytest.raises(UnsupportedOpError, match=message) as error:
        attach(net, config())
    assert "bad" in str(error.value)
    assert list(net.state_dict()) == names
    assert len(list(net.modules())) == count
    assert type(net["first"]) is nn.MultiheadAttention


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_attention_sites(per_channel: bool, separate: bool) -> None:
    sizes = {"kdim": 6, "vdim": 5} if separate else {}
    net = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True, **sizes))
    sites = attach(net, config(per_channel=per_channel))
    projections = ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if separate else ["in_proj_weight"]
    assert [site.name for site in sites] == [
        *(f"0.{name}" for name in projections),
        "0.out_proj.weight",
        "0.input",
        "0.out_proj.input",
    ]
    assert isinstance(net[0], Attention)
    x = torch.randn(3, 5, 8)
    other = (torch.randn(3, 4, 6), torch.randn(3, 4, 5)) if separate else (x, x)
    calibrate_(net, sites, [x], lambda module, batch: module[0](batch, *other))
    assert all(site.fired for site in sites)
    output, _ = net[0](x, *other)
    output.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_subclass_of_attention_with_a_forward_of_its_own_keeps_float_inputs() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x + 1, x, x, need_weights=False)[0]

    net, batch = nn.Sequential(Own(8, 2, batch_first=True)), torch.randn(3, 5, 8)
    sites = quantized(net, batch, config())
    assert type(net[0]) is not Attention
    assert {site.name: site.fired for site in sites} == {
        "0.in_proj_weight": True,
        "0.out_proj.weight": True,
        "0.out_proj.input": False,  # torch's forward takes out_proj's weight and never calls it
    }
