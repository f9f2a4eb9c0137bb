"""What is shipped is small, loads bit for bit, and gives the same answers elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shipping.ship import NETS, Shipped, ship

pytestmark = pytest.mark.needs("onnx", "onnxruntime", "onnxscript")

QUICK: dict[str, tuple[str, ...]] = {
    "digits_cnn": ("model=digits_cnn", "task=digits"),
}


def check(shipped: Shipped, accuracy: float, examples: int = 360) -> None:
    assert shipped.accuracy >= accuracy
    assert shipped.sizes.tensor_bytes <= 1.05 * shipped.sizes.stated_bytes
    assert shipped.same
    assert shipped.onnx.examples == shipped.pt2.examples == examples
    assert shipped.onnx.top1 >= 0.995
    assert shipped.folded.top1 >= 0.98
    assert shipped.pt2.top1 >= 0.995


@pytest.mark.parametrize("net", QUICK)
def test_a_small_net_is_shipped(net: str, tmp_path: Path) -> None:
    check(ship(QUICK[net], tmp_path), 0.8)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("net", [net for net in NETS if "task=cifar10" not in NETS[net]])
def test_a_net_is_shipped(net: str, tmp_path: Path) -> None:
    check(ship(NETS[net], tmp_path), 0.7)


@pytest.mark.long
@pytest.mark.needs("cifar10")
@pytest.mark.timeout(1200)
def test_ten_thousand_photographs(tmp_path: Path) -> None:
    check(ship(NETS["resnet20_cifar10"], tmp_path), 0.4, examples=10_000)
