"""Every registered net: shapes, gradients, sizes, initialisation, export in both modes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import orchestration.models
from geta_core.errors import ConfigError, GetaError
from orchestration.models import available, build, build_small, example_inputs
from orchestration.models.registry import FAMILIES

NAMES = list(available())

# Papers and torchvision's model pages (resnet18/50, mobilenet_v2, densenet121 to the digit), timm's table (the SE-nets'
# 11.78M and 28.09M, DeiT's 5.72M, ViT-S's 22.05M), the BERT paper's 110M plus the classifier, and DenseNet-BC's 0.8M.
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenetv2": 3_504_872,
    "densenet121": 7_978_856,
    "seresnet18": 11_778_592,
    "seresnet50": 28_088_024,
    "resnet18_gn": 11_689_512,
    "resnet50_gn": 25_557_032,
    "deit_tiny": 5_717_416,
    "vit_small": 22_050_664,
    "bert": 109_482_240 + 2 * 768 + 2,
    "bert_layers": 12 * 7_087_872,
    "unet": 31_037_698,
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build(name, **options)


def expected_shape(name: str, x: Tensor, classes: int) -> tuple[int, ...]:
    if name == "bert_layers":
        return tuple(x.shape)
    return (x.shape[0], classes, *x.shape[2:]) if name == "unet" else (x.shape[0], classes)


def test_every_family_file_is_registered() -> None:
    folder = Path(orchestration.models.__file__).parent
    families = {path.stem for path in folder.glob("*.py") if "\n@register(" in path.read_text(encoding="utf-8")}
    assert families == set(FAMILIES)
    assert list(available()) == sorted(available())


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    options: dict[str, object] = {} if name == "bert_layers" else {"num_classes": 7}
    model = build_small(name, **options)
    (x,) = example_inputs(name, batch=3, small=True)
    model.train()
    out = model(x)
    assert out.shape == expected_shape(name, x, 7)
    (out * torch.randn_like(out)).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
    dead = [key for key, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    # A softmax ignores what all keys share, so a key bias has no gradient but rounding; nothing else may be dead.
    assert all("key.bias" in key for key in dead), dead


@pytest.mark.parametrize("name", NAMES)
def test_eval_treats_each_example_alone(name: str) -> None:
    torch.manual_seed(0)
    model = build_small(name).double().eval()
    (x,) = example_inputs(name, batch=3, small=True)
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        whole, alone = model(x), torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_exports_in_both_modes(name: str) -> None:
    torch.manual_seed(0)
    model = build_small(name)
    inputs = example_inputs(name, small=True)
    exported = torch.export.export(model.eval(), inputs, strict=False)
    torch.testing.assert_close(exported.module()(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    free = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(model.train(), inputs, strict=False, dynamic_shapes=free)
    larger = example_inputs(name, batch=5, small=True)
    torch.testing.assert_close(exported.module()(*larger), model(*larger), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_parameter_counts(name: str) -> None:
    assert count(build_meta(name)) == PUBLISHED[name]


def test_parameter_counts_of_the_cifar_nets() -> None:
    # Option A of the paper (0.27M, 0.46M, 0.85M; 269,722 for ResNet20) plus the two convolution shortcuts and norms.
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    for name, identity in {"resnet20": 269_722, "resnet32": 464_154, "resnet56": 853_018}.items():
        assert count(build_meta(name)) == identity + shortcuts
    assert round(count(build_meta("densenet_bc", depth=100)) / 1e6, 1) == 0.8
    convolutions = 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
    classifier = 513 * 1024 + 1025 * 10
    assert count(build_meta("vgg7")) == convolutions + 2 * 2 * (128 + 256 + 512) + classifier
    assert 30_000 <= count(build_meta("digits_cnn")) <= 100_000


def test_torchvision_names() -> None:
    keys = {name: set(build_meta(name).state_dict()) for name in ("resnet18", "resnet50", "mobilenetv2", "densenet121")}
    assert {name: len(names) for name, names in keys.items()} == {
        "resnet18": 122,
        "resnet50": 320,
        "mobilenetv2": 314,
        "densenet121": 727,
    }
    assert {"conv1.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn2.bias", "fc.bias"} <= keys["resnet18"]
    assert {"layer1.0.conv3.weight", "layer3.5.bn3.num_batches_tracked"} <= keys["resnet50"]
    assert {"features.0.0.weight", "features.1.conv.1.weight", "classifier.1.bias"} <= keys["mobilenetv2"]
    assert {"features.denseblock4.denselayer16.conv2.weight", "features.norm5.bias"} <= keys["densenet121"]


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    checks = {
        "dense convolution": (build("vgg7").get_parameter("features.10.weight"), 9 * 256),
        "depthwise": (build("mobilenetv2", num_classes=2).get_parameter("features.14.conv.1.0.weight"), 9),
        "transposed, no overlap": (build("unet", width=32, depth=2).get_parameter("up.0.weight"), 128),
        "linear": (build("mlp", hidden=[400, 300]).get_parameter("body.2.weight"), 400),
    }
    for what, (weight, fan) in checks.items():
        # The sample deviation of n normal values is off by 1 / sqrt(2 n) on average: five of these are allowed.
        allowed = 5 / math.sqrt(2 * weight.numel())
        assert weight.std().item() / math.sqrt(2 / fan) == pytest.approx(1, abs=allowed), what


def test_transformer_initialisation() -> None:
    torch.manual_seed(0)
    for name in ("vit", "bert_layers"):
        model = build_small(name)
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                assert 0.015 < parameter.std().item() < 0.02, key  # 0.88 x 0.02 after the cut
                assert parameter.abs().max().item() <= 0.04, key
            else:
                assert bool((parameter == (1.0 if "norm" in key and key.endswith("weight") else 0.0)).all()), key


def test_widths_stems_and_channels() -> None:
    assert build("resnet18", width=16, stem="cifar", in_channels=1).get_parameter("conv1.weight").shape == (16, 1, 3, 3)
    for name in ("resnet18", "mobilenetv2"):
        (x,) = example_inputs(name, image_size=64)
        model = build_small(name, stem="imagenet")
        assert model(x).shape == (2, 10)
    assert build_small("encoder", norm_first=True)(*example_inputs("encoder", small=True)).shape == (2, 2)


def test_bert_mask_hides_padding() -> None:
    torch.manual_seed(0)
    model = build_small("bert").double().eval()
    (ids,) = example_inputs("bert", small=True)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask), model(ids[:, :8]), rtol=0, atol=1e-12)
        assert not torch.equal(model(ids, mask), model(ids))


def test_options_that_do_not_fit_each_other() -> None:
    cases: dict[str, dict[str, object]] = {
        "vit": {"image_size": 30, "patch_size": 4, "num_heads": 5},
        "resnet18": {"layers": [2, 2]},
        "resnet18_gn": {"width": 24},
        "densenet_bc": {"depth": 41},
        "densenet121": {"blocks": []},
        "encoder": {"width": 10},
        "mlp": {"hidden": []},
        "bert_layers": {"num_heads": 7},
    }
    for name, options in cases.items():
        with pytest.raises(ConfigError) as caught:
            build(name, **options)
        assert all(f"of {name!r}" in fault for fault in caught.value.faults)
        assert len(caught.value.faults) == (2 if name == "vit" else 1)
    with pytest.raises(GetaError, match="multiples of 4, got 18 x 16"):
        build_small("unet")(torch.zeros(1, 3, 18, 16))
