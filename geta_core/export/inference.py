"""The graph that is exported: in eval mode, its weights as whole numbers times steps, its norms folded into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from geta_core.artifact.tensors import whole_numbers
from geta_core.copying import copied
from geta_core.graph import ExampleInputs
from geta_core.slim import modes
from geta_core.slim.graph_module import as_switchable

if TYPE_CHECKING:
    from geta_core.report import QuantizedWeight

aten = torch.ops.aten
_CONV = {getattr(aten, name).default for name in ("conv1d", "conv2d", "conv3d")}


@dataclass(frozen=True)
class Whole:
    """A weight as ``levels * step``."""

    levels: Tensor
    """Whole numbers, shaped like the weight."""
    step: Tensor
    """0-dim, or broadcasts along ``axis``."""
    bits: Tensor
    """Stated bit widths, shaped like the step of the finished model."""
    axis: int | None
    """Dimension that the step varies along."""


@dataclass(frozen=True)
class Grid:
    """The grid of a layer's input, as numbers."""

    name: str
    """Of the quantizer."""
    d: float
    q_m: float
    t: float | None
    signed: bool

    @property
    def top(self) -> int:
        """The largest level, q_m^t / d."""
        return round((self.q_m if self.t is None else self.q_m**self.t) / self.d)

    @property
    def bits(self) -> int:
        """Whole bits that the levels need."""
        return self.top.bit_length() + int(self.signed)


@dataclass
class InferenceGraph:
    """What is written."""

    module: fx.GraphModule
    weights: dict[str, Whole]
    """By the name of the tensor that the graph reads."""


def inference_graph(
    model: nn.Module, weights: Mapping[str, QuantizedWeight], inputs: ExampleInputs, *, fold: bool
) -> InferenceGraph:
    """The eval-mode graph of a finished model.

    Args:
        model: finished, or loaded from an artifact; put into eval mode.
        weights: of the finished model.
        inputs: example.
        fold: multiply batch norms into the steps of the convolutions before them: w' = n (d gamma / sigma), so that
            the whole numbers stay (where gamma is negative, their signs turn around).

    Raises:
        GetaError: if the model has no graph.
        ArtifactError: if a weight does not lie on its grid.
    """
    module = copied(as_switchable(model.eval(), inputs.map(torch.clone))).eval()
    found = {name: _whole(name, module, weight) for name, weight in _aliases(module, weights).items()}
    _drop_counters(module)
    if fold:
        for node in list(module.graph.nodes):
            _fold(module, node, found)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return InferenceGraph(module, {name: whole for name, whole in found.items() if name in read})


def _aliases(module: nn.Module, weights: Mapping[str, QuantizedWeight]) -> dict[str, QuantizedWeight]:
    """Weights under every name that the graph may read them by (tied tensors have several)."""
    named = dict(module.named_parameters(remove_duplicate=False))
    by_id = {id(named[name]): weight for name, weight in weights.items() if name in named}
    return {name: by_id[id(tensor)] for name, tensor in named.items() if id(tensor) in by_id}


def _whole(name: str, module: nn.Module, weight: QuantizedWeight) -> Whole:
    value, step = attribute(module, name).detach().cpu(), weight.step.detach().cpu()
    axis = next((dim for dim, size in enumerate(step.shape) if size > 1), None)
    if axis is None:
        step = step.reshape(())
    return Whole(whole_numbers(name, value, step).to(torch.int32), step, weight.bits, axis)


def attribute(module: nn.Module, name: str) -> Tensor:
    """The tensor of a dotted name."""
    owner, _, leaf = name.rpartition(".")
    return cast(Tensor, getattr(module.get_submodule(owner), leaf))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    delattr(holder, leaf)
    holder.register_parameter(leaf, nn.Parameter(value, requires_grad=False))


def _drop_counters(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if _mode(module, node) is modes.CountIfTraining and not node.users:
            module.graph.erase_node(node)


def _mode(module: fx.GraphModule, node: Any) -> type[nn.Module] | None:
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return type(module.get_submodule(str(node.target))) if called else None


def _fold(module: fx.GraphModule, norm: fx.Node, weights: dict[str, Whole]) -> None:
    """Fold one batch norm into the convolution that alone it reads, if the weight of that is on a grid and its own."""
    if _mode(module, norm) is not modes.BatchNorm or norm.args[3] is None:
        return
    conv = cast(fx.Node, norm.args[0])
    kernel = conv.args[1] if conv.target in _CONV else None
    if not isinstance(kernel, fx.Node) or len(conv.users) > 1 or str(kernel.target) not in weights:
        return
    name = str(kernel.target)
    readers = [node for node in module.graph.nodes if node.op == "get_attr" and _same(module, node, name)]
    if len(readers) > 1 or len(kernel.users) > 1:
        return
    scale, offset = _affine(module, norm)
    whole = weights[name]
    along = (-1, *[1] * (whole.levels.dim() - 1))
    levels = whole.levels * scale.sign().to(whole.levels.dtype).view(along)
    step = whole.step.double() * torch.where(scale == 0, 1.0, scale.abs()).view(along)
    weights[name] = Whole(levels, step.to(whole.step.dtype), whole.bits, 0)
    value = attribute(module, name)
    _set(module, name, (levels.to(value.dtype) * weights[name].step.to(value.dtype)).to(value))
    before = conv.args[2] if len(conv.args) > 2 else None
    old = attribute(module, str(before.target)).detach().cpu().double() if isinstance(before, fx.Node) else 0.0
    _rewrite(module, norm, (old * scale + offset).to(value))


def _same(module: fx.GraphModule, node: fx.Node, name: str) -> bool:
    return attribute(module, str(node.target)) is attribute(module, name)


def _affine(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Scale and offset per channel of a batch norm in eval mode, float64 on the CPU."""

    def read(value: Any) -> Tensor | None:
        return attribute(module, str(value.target)).detach().cpu().double() if isinstance(value, fx.Node) else None

    gamma, beta, mean, variance = (read(value) for value in norm.args[1:5])
    assert mean is not None and variance is not None
    scale = torch.rsqrt(variance + cast(float, norm.args[7]))
    scale = scale if gamma is None else scale * gamma
    return scale, -mean * scale + (0.0 if beta is None else beta)


def _rewrite(module: fx.GraphModule, norm: fx.Node, bias: Tensor) -> None:
    """Give the convolution its bias, and take the norm out."""
    conv = cast(fx.Node, norm.args[0])
    name = f"{norm.name}_folded"
    module.register_parameter(name, nn.Parameter(bias, requires_grad=False))
    with module.graph.inserting_before(conv):
        held = module.graph.get_attr(name)
    arguments = [*conv.args, None][:3]
    conv.args = (*arguments[:2], held, *conv.args[3:])
    norm.replace_all_uses_with(conv)
    module.graph.erase_node(norm)


def grids(module: fx.GraphModule) -> dict[fx.Node, Grid]:
    """The grid of every quantized input by its node."""
    found = {}
    for node in _quantizers(module.graph.nodes):
        d, q_m, t = (
            None if value is None else attribute(module, str(cast(fx.Node, value).target)).detach().item()
            for value in node.args[1:4]
        )
        assert d is not None and q_m is not None
        name = str(cast(fx.Node, node.args[1]).target).rpartition(".")[0]
        found[node] = Grid(name, d, q_m, t, bool(node.args[4]))
    return found


def _quantizers(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if node.target is torch.ops.geta.fake_quantize.default]
