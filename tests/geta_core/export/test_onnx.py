"""An ONNX file holds whole numbers, and onnxruntime computes with it what torch computes with the model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from geta_core.export.runtime import OnnxModule, SideBySide
from tests.geta_core.compressing import batch, compressed_net

pytestmark = pytest.mark.needs("onnx", "onnxruntime", "onnxscript")

CASES = [
    ("mobilenet", "WA", True),
    ("vgg7", "WA", True),
    ("vgg7", "W per channel", False),
    ("encoder", "WA", True),
    ("vit", "W per channel", True),
    ("fixed", "WA", False),
]
WIDTHS = {"INT4": 4, "INT8": 8, "INT16": 16}


def proto(path: Path) -> Any:
    import onnx

    return onnx.load(path)


def arrays(graph: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {tensor.name: np.asarray(numpy_helper.to_array(tensor)) for tensor in graph.initializer}


def kinds(graph: Any) -> dict[str, str]:
    import onnx

    return {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}


@pytest.mark.parametrize(("net", "mode", "fold"), CASES)
def test_a_file_computes_what_the_model_does(net: str, mode: str, fold: bool, tmp_path: Path) -> None:
    compressed = compressed_net(net, mode)
    path = tmp_path / "model.onnx"
    compressed.export_onnx(path, fold=fold)
    both = SideBySide(compressed.model, OnnxModule(path, optimize=False))
    for size in (1, 3, 32):
        both(batch(net, size))
    found = both.agreement
    assert found.examples == 36
    # Another order of summation may turn the rounding of an input the other way: one level of it, then.
    assert found.max_error <= (2e-2 if mode == "WA" else 1e-5) * max(1.0, found.largest)
    assert found.top1 >= (0.97 if mode == "WA" else 1.0)
    # The runtime's integer kernels round more than that; on trained nets the answers stay the same (tests/shipping).
    fast = SideBySide(compressed.model, OnnxModule(path))
    fast(batch(net, 32))
    assert fast.agreement.max_error <= 0.2 * found.largest
    data = path.read_bytes()
    assert b".py" not in data, "the file names source files"
    written = proto(path).graph
    sizes = [value.type.tensor_type.shape.dim[0].dim_param for value in (*written.input, *written.output)]
    assert sizes == ["batch"] * len(sizes), sizes
    _check_weights(compressed, written, fold)


def _check_weights(compressed: geta.Compressed, graph: Any, fold: bool) -> None:
    """Every quantized weight is there as whole numbers of the narrowest type, and is the weight bit for bit."""
    values, types = arrays(graph), kinds(graph)
    made = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    named = dict(compressed.model.named_parameters())
    for name, weight in compressed.weights.items():
        bits = int(weight.bits.max())
        assert types[f"{name}.levels"] == next(kind for kind, width in WIDTHS.items() if width >= bits)
        assert name not in values
        levels = values[f"{name}.levels"].astype(np.int64)
        assert np.abs(levels // np.gcd.reduce(levels.ravel())).max() <= 2 ** (bits - 1) - 1
        step = values[f"{name}.step"]
        if step.ndim:
            axis = made[name].attribute[0].i
            step = step.reshape([-1 if dim == axis else 1 for dim in range(levels.ndim)])
        found, own = torch.from_numpy((levels * step.astype(np.float32)).astype(np.float32)), named[name].detach()
        if found.shape != own.shape:
            found = found.T
        if not fold:
            assert torch.equal(found, own), name


def test_folding_keeps_the_whole_numbers(tmp_path: Path) -> None:
    """Only signs of whole channels may turn; the scale of the norm goes into the steps."""
    compressed = compressed_net("mobilenet", "W per channel")
    plain, folded = tmp_path / "plain.onnx", tmp_path / "folded.onnx"
    compressed.export_onnx(plain, fold=False)
    compressed.export_onnx(folded, fold=True)
    assert any(node.op_type == "BatchNormalization" for node in proto(plain).graph.node)
    assert not any(node.op_type == "BatchNormalization" for node in proto(folded).graph.node)
    before, after = arrays(proto(plain).graph), arrays(proto(folded).graph)
    for name in compressed.weights:
        a, b = (held[f"{name}.levels"].astype(np.int64) for held in (before, after))
        assert np.array_equal(np.abs(a), np.abs(b)), name
    assert folded.stat().st_size < plain.stat().st_size


@pytest.mark.parametrize("top", [0, 1, 3, 7, 15, 31, 63, 127])
def test_integer_kernels_get_the_finest_step(top: int) -> None:
    """The product stays bit for bit, and no sum of two products with 255 leaves 16 bits, but for 8 bits of its own."""
    from geta_core.export.inference import Whole
    from geta_core.export.onnx_nodes import _widened

    levels = torch.arange(-top, top + 1, dtype=torch.int32)
    whole = Whole(levels, torch.tensor(0.0123), torch.tensor(8.0), None)
    found = _widened(whole)
    assert torch.equal(found.levels * found.step, levels * whole.step)
    largest = int(found.levels.abs().max())
    assert top in (0, 127) or (32 < largest <= 64 and 2 * 255 * largest < 2**15)


class Passing(nn.Module):
    """Quantizes its input and hands it on: a linear layer with the unit matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@cache
def values() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # Ties of the rounding, zeros of both signs, and values far outside of the range are among them.
    x = torch.cat([torch.randn(56, 8, generator=generator) * 2, torch.zeros(4, 8), torch.full((4, 8), -0.0)])
    x[:8] = (torch.arange(64).view(8, 8) - 32) / 16
    return x


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8, 9, 16])
def test_inputs_have_the_same_levels(bits: int, signed: bool, tmp_path: Path) -> None:
    compressed = _passing(bits, signed, exponent=None)
    path = tmp_path / "model.onnx"
    compressed.export_onnx(path)
    with torch.no_grad():
        assert torch.equal(OnnxModule(path)(values())[0], compressed.model(values()))


def test_exponents_are_exact_up_to_the_power(tmp_path: Path) -> None:
    """The runtime's power differs from torch's by its rounding: at most a level, and next to a tie only."""
    compressed = _passing(6, True, exponent=0.7)
    path = tmp_path / "model.onnx"
    compressed.export_onnx(path)
    step = float(compressed.model.layer.input_quantizer.d)  # type: ignore[union-attr]
    with torch.no_grad():
        gap = ((OnnxModule(path)(values())[0] - compressed.model(values())) / step).abs()
    assert float(gap.max()) <= 1 + 1e-4
    assert float((gap > 1e-4).float().mean()) <= 0.01
    assert {"Sign", "Pow", "Clip"} <= {node.op_type for node in proto(path).graph.node}


def _passing(bits: int, signed: bool, exponent: float | None) -> geta.Compressed:
    config = geta.CompressionConfig(
        sparsity=0.0,
        weight_bits=None,
        activation_bits=(2, 16),
        learn_activation_exponent=exponent is not None,
    )
    inputs = values() if signed else values().abs()
    prepared = geta.prepare(Passing(8), inputs, config)
    (site,) = prepared.sites
    assert site.quantizer.signed == signed
    with torch.no_grad():
        site.quantizer.q_m.fill_(1.5)
        if site.quantizer.t is not None and exponent is not None:
            site.quantizer.t.fill_(exponent)
    site.quantizer.set_bits_(bits)
    return geta.finish(prepared)


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    compressed = compressed_net("resnet", "W")
    path = tmp_path / "model.onnx"
    from geta_core.export import export_onnx

    with pytest.raises(geta.GetaError, match="float32"):
        export_onnx(nn.Linear(2, 2).double(), {}, compressed.inputs, path)
    with pytest.raises(geta.ArtifactError, match="cannot write"):
        compressed.export_onnx(tmp_path / "absent" / "model.onnx")
    with pytest.raises(geta.ConfigError, match="int4"):
        compressed.export_onnx(path, int4="yes")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
