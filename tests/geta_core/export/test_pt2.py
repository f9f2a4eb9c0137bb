"""A .pt2 program needs torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.geta_core.compressing import batch, compressed_net

ALONE = """
import json, sys
import torch
program = torch.export.load(sys.argv[1])
assert not any(name.partition(".")[0] == "geta_core" for name in sys.modules)
operators = sorted({str(node.target) for node in program.graph.nodes if node.op == "call_function"})
inputs, expected = torch.load(sys.argv[2], weights_only=True), torch.load(sys.argv[3], weights_only=True)
with torch.no_grad():
    gap = max(float((program.module()(x) - y).abs().max()) for x, y in zip(inputs, expected))
example = max(float(value.abs().max()) for value in program.example_inputs[0])
print(json.dumps([operators, gap, example]))
"""


@pytest.mark.parametrize(("net", "mode"), [("encoder", "WA"), ("fixed", "W")])
def test_a_program_loads_without_the_engine(net: str, mode: str, tmp_path: Path) -> None:
    compressed = compressed_net(net, mode)
    compressed.export_pt2(tmp_path / "model.pt2")
    inputs = [batch(net, size) for size in (1, 2, 5)]
    with torch.no_grad():
        expected = [compressed.model(x) for x in inputs]
    torch.save(inputs, tmp_path / "inputs.pt")
    torch.save(expected, tmp_path / "expected.pt")
    command = [
        sys.executable,
        "-P",
        "-c",
        ALONE,
        *(str(tmp_path / name) for name in ("model.pt2", "inputs.pt", "expected.pt")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    operators, gap, example = json.loads(done.stdout.splitlines()[-1])
    assert not [name for name in operators if not name.startswith(("aten.", "<built-in function"))]
    scale = max(1.0, *(float(y.abs().max()) for y in expected))
    # Operations may be decomposed into others, so sums may be taken in another order.
    assert gap <= (2e-2 if mode == "WA" else 1e-5) * scale
    assert example == 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.pt", "inputs.pt", "model.pt2"]
