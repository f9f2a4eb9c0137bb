"""Gates on the prunable groups of a model: one factor per group, drawn once per forward pass.

A group's factor z multiplies the parameters that decide whether its channel is zero (the PRODUCE members of the
dependency graph): what a gate closes is then exactly what the engine removes. Where a layer's output goes straight into
a normalization of each channel by itself, the normalization undoes a factor on the layer's own weights, so that the
factor goes to the normalization's scale and shift alone. Weights that are quantized are multiplied before the
quantizer, so that the factor can be merged into the float weight at the end without leaving the grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

import geta_core as geta
from geta_core.graph import PruneSlot

aten = torch.ops.aten

_ATTACHED: WeakKeyDictionary[nn.Module, ChannelGates] = WeakKeyDictionary()
"""The gates of each model that has some."""
_CHANNEL_NORMS = (aten.batch_norm, aten.instance_norm, aten._native_batch_norm_legit_no_training)
_LINEAR_MAPS = (
    *(aten.linear, aten.addmm, aten.mm, aten.matmul, aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution),
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
)


class ChannelGates(nn.Module, ABC):
    """Base of a set of gates, one per group; a subclass says how z is drawn.

    Attributes:
        alive: bool [groups]; z of the others is 0, in training too.
        fixed: once true, the gates are 1 or 0 and nothing is drawn; follows from the schedule, never saved.
    """

    alive: Tensor

    def __init__(self, groups: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("alive", torch.ones(groups, dtype=torch.bool, device=device))
        self.fixed = False
        self._now: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._sites: list[tuple[nn.Module, str]] = []
        self._home: tuple[nn.Module, ...] = ()

    @abstractmethod
    def draw(self) -> Tensor:
        """Return z in training, float [groups]."""

    @abstractmethod
    def settled(self) -> Tensor:
        """Return z in evaluation, float [groups]."""

    def factors(self) -> Tensor:
        """Return z of now with a last entry 1, which stands for "no group"; zero where a group is not alive."""
        if self._now is not None:
            return self._now
        z = self.draw() if self.training and torch.is_grad_enabled() else self.settled()
        z = torch.where(self.alive, z, torch.zeros_like(z))
        return torch.cat([z, torch.ones_like(z[:1])])

    def begin(self) -> None:
        """Draw what a forward pass uses; nothing is drawn once the gates are fixed."""
        self._now = None if self.fixed else self.factors()

    def end(self) -> None:
        """Let go of what was drawn."""
        self._now = None

    def attach_(self, model: nn.Module, slots: Sequence[PruneSlot], home: nn.Module | None = None) -> None:
        """Put the gates on the parameters of ``slots``.

        They become a submodule of ``home``, by default of the first gated parameter's parametrization: never of the
        model itself, whose forward may run over its children.
        """
        holders = _holders(model, slots)
        for slot in slots:
            for module, name in holders[id(slot.parameter)]:
                factor = _RowFactor(self, slot)
                home = home or factor
                self._gate(module, name, factor)
        if home is not None:
            home.add_module("gates", self)
            self._home = (home,)
        self._handles = [
            model.register_forward_pre_hook(_Begin(self)),
            model.register_forward_hook(_End(self), always_call=True),
        ]
        _ATTACHED[model] = self

    def _gate(self, module: nn.Module, name: str, factor: nn.Module) -> None:
        if not parametrize.is_parametrized(module, name):
            parametrize.register_parametrization(module, name, factor)
        else:  # before whatever is there, so that a quantizer comes last
            lists = cast(nn.ModuleDict, module.parametrizations)
            cast(nn.ModuleList, lists[name]).insert(0, factor)
        self._sites.append((module, name))

    @torch.no_grad()
    def merge_(self) -> None:
        """Multiply z of evaluation into the parameters, once; from here on the gates are 1, or 0 if not alive."""
        self._now = None
        training = self.training
        z = self.eval().factors()
        self.train(training)
        for original, factors in self._originals():
            for factor in factors:
                original.mul_(factor.expand(z))
        self.fixed = True

    def _originals(self) -> list[tuple[Tensor, list[_RowFactor]]]:
        found: dict[int, tuple[Tensor, list[_RowFactor]]] = {}
        for module, name in self._sites:
            entry = cast(nn.ModuleList, cast(nn.ModuleDict, module.parametrizations)[name])
            original = cast(Tensor, entry.original)
            found[id(original)] = (original, [each for each in entry if isinstance(each, _RowFactor)])
        return list(found.values())

    def detach_(self, model: nn.Module) -> None:
        """Take the gates off again; the parameters stay what they are."""
        for handle in self._handles:
            handle.remove()
        for module, name in dict.fromkeys(self._sites):
            lists = cast(nn.ModuleDict, module.parametrizations)
            entry = cast(nn.ModuleList, lists[name])
            for position in reversed([at for at, each in enumerate(entry) if isinstance(each, _RowFactor)]):
                entry.pop(position)
            if len(entry) == 0:
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        for home in self._home:
            del home.gates
        self._sites, self._handles, self._home = [], [], ()
        del _ATTACHED[model]


class _RowFactor(nn.Module):
    """Parametrization: a parameter times the factors of its rows."""

    index: Tensor

    def __init__(self, gates: ChannelGates, slot: PruneSlot) -> None:
        super().__init__()
        index = torch.where(slot.group >= 0, slot.group, torch.full_like(slot.group, gates.alive.numel()))
        self.register_buffer("index", index.to(slot.parameter.device), persistent=False)
        self.shape = [-1 if dim == slot.dim else 1 for dim in range(slot.parameter.dim())]
        self._gates = (gates,)  # in a tuple: the gates are a submodule of the model, not of each parameter

    def expand(self, z: Tensor) -> Tensor:
        """Return the factors in a shape that broadcasts against the parameter."""
        return z.index_select(0, self.index).view(self.shape)

    def forward(self, value: Tensor) -> Tensor:
        """Return the gated parameter; the parameter itself once the gates are fixed."""
        (gates,) = self._gates
        return value if gates.fixed else value * self.expand(gates.factors()).to(value.dtype)


class _Begin:
    """Forward pre-hook of the model; an object, so that a copy of the model has a copy of the gates."""

    def __init__(self, gates: ChannelGates) -> None:
        self.gates = gates

    def __call__(self, model: nn.Module, args: Any) -> None:
        self.gates.begin()


class _End:
    """Forward hook of the model."""

    def __init__(self, gates: ChannelGates) -> None:
        self.gates = gates

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        self.gates.end()


def gates_of(model: nn.Module) -> ChannelGates | None:
    """Return the gates that are attached to a model."""
    return _ATTACHED.get(model)


def _holders(model: nn.Module, slots: Sequence[PruneSlot]) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every (module, name) that holds each slot's parameter, parametrized or not."""
    found: dict[int, list[tuple[nn.Module, str]]] = {id(slot.parameter): [] for slot in slots}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in found:
                found[id(parameter)].append((module, name))
        if parametrize.is_parametrized(module):
            for name, entry in cast(nn.ModuleDict, module.parametrizations).items():
                original = getattr(entry, "original", None)
                if id(original) in found:
                    found[id(original)] = [*found[id(original)], (module, name)]
    lists = {id(each) for each in model.modules() if isinstance(each, parametrize.ParametrizationList)}
    return {key: [(m, n) for m, n in owners if id(m) not in lists] for key, owners in found.items()}


def gated_slots(prepared: geta.Prepared) -> list[PruneSlot]:
    """Return the slots that gates multiply: all but those of layers whose output a channel norm rescales at once."""
    undone = _rescaled(prepared)
    return [slot for slot in prepared.slots if id(slot.parameter) not in undone]


def _rescaled(prepared: geta.Prepared) -> set[int]:
    """Ids of the parameters of linear maps whose only consumer is a batch or instance norm with a scale of its own."""
    capture, found = prepared.graph.capture, set()
    for node in capture.graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in _CHANNEL_NORMS or not isinstance(node.args[1], fx.Node):
            continue
        layer = cast(fx.Node, node.args[0])
        if getattr(layer.target, "overloadpacket", None) in _LINEAR_MAPS and len(layer.users) == 1:
            tensors = (_tensor(prepared, each) for each in layer.all_input_nodes if each not in capture.data)
            found |= {id(tensor) for tensor in tensors if tensor is not None}
    return found


def _tensor(prepared: geta.Prepared, node: fx.Node) -> Tensor | None:
    """The parameter behind an operand, through a quantizer or a view."""
    capture = prepared.graph.capture
    while node not in capture.names:
        if node.op != "call_function" or not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]
    return capture.tensors[capture.names[node]]
