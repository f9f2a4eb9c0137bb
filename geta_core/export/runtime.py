"""ONNX files in onnxruntime: run them as modules, compare them with the model, and time them."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from geta_core.accounting.latency import Timing, timed
from geta_core.errors import GetaError
from geta_core.graph import ExampleInputs
from geta_core.graph.capture import first_line
from geta_core.slim.verify import with_batch

MISSING = "onnxruntime is not installed; install geta[onnx]"


def have_onnxruntime() -> bool:
    """Whether files can be run here."""
    return importlib.util.find_spec("onnxruntime") is not None


class OnnxModule(nn.Module):
    """An ONNX file as a module: the same inputs, and its outputs as a list of tensors on the CPU.

    Args:
        path: of the file.
        threads: of onnxruntime within an operation; torch's number by default.
        optimize: let onnxruntime rewrite the graph, above all to integer kernels; these round biases and outputs of
            layers to whole numbers, where the graph as written computes in floating point.

    Raises:
        GetaError: if onnxruntime is missing or refuses the file.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, *, optimize: bool = True) -> None:
        super().__init__()
        if not have_onnxruntime():
            raise GetaError(MISSING)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise GetaError(f"onnxruntime refuses {path}: {first_line(error)}") from error
        self.names = [value.name for value in self.session.get_inputs()]

    def feed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The inputs by name, as arrays."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(tensors) != len(self.names):
            raise GetaError(f"the ONNX file takes {len(self.names)} inputs, but got {len(tensors)}")
        return {name: tensor.detach().cpu().numpy() for name, tensor in zip(self.names, tensors, strict=True)}

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Run the file."""
        return [torch.from_numpy(value) for value in self.session.run(None, self.feed(args, kwargs))]


@dataclass
class Agreement:
    """How far two models agree on the examples that were seen."""

    examples: int = 0
    agree: int = 0
    """Examples whose largest entry of the first output is at the same place."""
    max_error: float = 0.0
    """Largest difference of any output."""
    largest: float = 0.0
    """Largest magnitude of the model's outputs."""

    @property
    def top1(self) -> float:
        """Share of the examples that agree."""
        return self.agree / self.examples if self.examples else float("nan")

    def see(self, expected: list[Tensor], found: list[Tensor]) -> None:
        """Take one batch into account."""
        for a, b in zip(expected, found, strict=True):
            gap = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
            self.max_error = max(self.max_error, gap if gap == gap else float("inf"))
            self.largest = max(self.largest, float(a.abs().max()) if a.numel() else 0.0)
        first, other = expected[0], found[0]
        same = (first.argmax(-1) == other.argmax(-1)).reshape(len(first), -1).all(1)
        self.examples += len(first)
        self.agree += int(same.sum())


class SideBySide(nn.Module):
    """Computes what ``model`` does, and notes how far ``other`` agrees."""

    def __init__(self, model: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that it is no submodule: exported programs refuse train() and eval().
        self._other = (other,)
        self.agreement = Agreement()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run both; the outputs are the model's."""
        with torch.no_grad():
            expected = self.model(*args, **kwargs)
            found = self._other[0](*args, **kwargs)
        self.agreement.see(_tensors(expected), _tensors(found))
        return expected


def _tensors(value: Any) -> list[Tensor]:
    return [leaf.detach().cpu() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def onnx_seconds(path: str | os.PathLike[str], inputs: ExampleInputs, batch: int) -> Timing:
    """Time an ONNX file in onnxruntime on the CPU.

    Args:
        path: of the file.
        inputs: example; rows are repeated in turn.
        batch: examples in a pass.
    """
    module = OnnxModule(path)
    rows = with_batch(inputs, batch)
    feed = module.feed(rows.args, rows.kwargs)
    return timed(lambda: module.session.run(None, feed))
