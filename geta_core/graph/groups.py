"""Groups: what can be removed together, why a group may not be, and which index of which tensor belongs to it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geta_core.config import CompressionConfig
from geta_core.errors import ConfigError, closest
from geta_core.graph.capture import Capture, where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Slot, varying
from geta_core.graph.rules import install_all
from geta_core.graph.streams import retreat, settle
from geta_core.graph.zeros import Zeros
from geta_core.quantize import Quantizer

Role = Literal["PRODUCE", "CONSUME", "BUFFER"]


@dataclass(frozen=True)
class Member:
    """Indices of one tensor dimension that belong to a group."""

    name: str
    dim: int
    indices: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class Group:
    """One minimally removable structure.

    ``pinned`` is None, or the reason why the group is never removed. ``inexact`` marks a group that the user opted
    in although
    a normalization reduces over it: removal then changes the result.
    """

    id: int
    family: int
    members: tuple[Member, ...]
    pinned: str | None
    inexact: bool = False


@dataclass(frozen=True)
class PruneSlot:
    """A parameter dimension whose indices are scored, forgotten and zeroed."""

    name: str
    parameter: nn.Parameter
    dim: int
    group: Tensor
    """Long [size of the dimension]: number of the prunable group of each index, -1 where it is not prunable."""


class GroupGraph:
    """The groups of a captured model.

    Attributes:
        component: long [ids], the component of each id.
        number: long [components], the number of each prunable group (0 .. num_prunable - 1), -1 for the others.
        produce: bool [ids], whether an index is zeroed with its group.
    """

    def __init__(self, capture: Capture, config: CompressionConfig, model: nn.Module) -> None:
        install_all()
        self.capture = capture
        self.first = Dependencies(capture, config.heads, config.prune_normalized)
        self.first.run()
        settle(self.first)
        _pin_chosen(self.first, config, model)
        self.count, self.component, self.produce, second = _grouped(self.first)
        self.reasons = self._reasons(second)
        self.inexact = self._marked(self.first.inexact)
        self.number, self.family = self._numbered()
        self.num_prunable = int((self.number >= 0).sum())

    def _marked(self, ids: Sequence[Tensor]) -> Tensor:
        flags = torch.zeros(self.count, dtype=torch.bool)
        for part in ids:
            flags[self.component[part]] = True
        return flags

    def _reasons(self, second: Zeros) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for ids, reason in self.first.space.pins:
            for index in torch.unique(self.component[ids]).tolist():
                reasons.setdefault(index, reason)
        for index, reason in second.reasons.items():
            reasons.setdefault(index, reason)
        return reasons

    def _numbered(self) -> tuple[Tensor, Tensor]:
        """Number the prunable components, and give each a family: groups made of the same tensor dimensions."""
        number = torch.full((self.count,), -1, dtype=torch.long)
        produces = self._marked([torch.nonzero(self.produce).flatten()])
        free = produces.clone()
        free[list(self.reasons)] = False
        slots_of = self._slots_of(produces)
        prunable = torch.tensor([index for index in slots_of if bool(free[index])], dtype=torch.long)
        number[prunable] = torch.arange(len(prunable))
        families: dict[tuple[int, ...], int] = {}
        family = torch.full((self.count,), -1, dtype=torch.long)
        for index, slots in slots_of.items():
            family[index] = families.setdefault(slots, len(families))
        return number, family

    def _slots_of(self, wanted: Tensor) -> dict[int, tuple[int, ...]]:
        """The tensor dimensions of each wanted component.

        Components come in the order of the names and indices of what they hold, which quantizers do not change.
        """
        found: dict[int, list[int]] = {}
        slots = sorted(self.first.space.slots.values(), key=lambda slot: (slot.name, slot.dim))
        for position, slot in enumerate(slot for slot in slots if slot.offset not in self._of_quantizers):
            for index in dict.fromkeys(self.component[slot.offset : slot.offset + slot.size].tolist()):
                if wanted[index]:
                    found.setdefault(index, []).append(position)
        return {index: tuple(positions) for index, positions in found.items()}

    def rebound(self, memo: Mapping[int, Any]) -> GroupGraph:
        """The same groups over copied tensors.

        Args:
            memo: what ``copy.deepcopy`` of the model filled: id of an original to its copy.
        """
        tensors = {name: memo.get(id(tensor), tensor) for name, tensor in self.capture.tensors.items()}
        new, new.first = copy.copy(self), copy.copy(self.first)
        new.capture = new.first.capture = replace(self.capture, tensors=tensors)
        return new

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group that has something to zero: the prunable ones first, in the order of their numbers."""
        members: dict[int, list[Member]] = {}
        family = self.family.tolist()
        for slot in self.first.space.slots.values():
            role, component = self.role(slot), self.component[slot.offset : slot.offset + slot.size].numpy()
            order = np.argsort(component, kind="stable")
            bounds = np.flatnonzero(np.diff(component[order])) + 1
            for part in np.split(order, bounds):
                index = int(component[part[0]])
                if family[index] >= 0:
                    members.setdefault(index, []).append(Member(slot.name, slot.dim, tuple(part.tolist()), role))
        ordered = sorted(members, key=lambda i: (int(self.number[i]) < 0, int(self.number[i]), i))
        return tuple(
            Group(
                position,
                family[index],
                tuple(members[index]),
                None if int(self.number[index]) >= 0 else self.reasons.get(index, "is not zeroed as a whole"),
                bool(self.inexact[index]),
            )
            for position, index in enumerate(ordered)
        )

    def role(self, slot: Slot) -> Role:
        """What happens to the indices of a slot when their group goes."""
        if bool(self.produce[slot.offset : slot.offset + slot.size].any()):
            return "PRODUCE"
        owned = slot.offset in self._of_quantizers or slot.name not in self.capture.parameters
        return "BUFFER" if owned else "CONSUME"

    @cached_property
    def _of_quantizers(self) -> frozenset[int]:
        """Ids of parameters of quantizers."""
        return frozenset(torch.cat([*self.first.quantizer_ids, torch.zeros(0, dtype=torch.long)]).tolist())

    def numbers(self, slot: Slot) -> Tensor:
        """Long [size]: prunable group of each index of a slot, -1 where none."""
        return self.number[self.component[slot.offset : slot.offset + slot.size]]

    def prune_slots(self) -> list[PruneSlot]:
        """The slots that QASSO scores, forgets and zeroes."""
        found = []
        for slot in self.first.space.slots.values():
            produced = self.produce[slot.offset : slot.offset + slot.size]
            group = torch.where(produced, self.numbers(slot), torch.full((slot.size,), -1))
            if bool((group >= 0).any()):
                parameter = cast(nn.Parameter, self.capture.tensors[slot.name])
                found.append(PruneSlot(slot.name, parameter, slot.dim, group))
        return found

    def prunable_families(self) -> Tensor:
        """Long [num_prunable]: family of each prunable group, renumbered from 0."""
        found = torch.unique(self.family[self.prunable_components()], return_inverse=True)
        return cast(Tensor, found[1])

    def prunable_components(self) -> Tensor:
        """Long [num_prunable]: component of each prunable group."""
        components = torch.nonzero(self.number >= 0).flatten()
        return components[torch.argsort(self.number[components])]

    def kept(self, dead: Tensor) -> dict[tuple[str, int], Tensor]:
        """Indices that stay, for every tensor dimension that loses some.

        Args:
            dead: bool [num_prunable].
        """
        keep: dict[tuple[str, int], Tensor] = {}
        ids = self.dead_ids(dead)
        for key, slot in self.first.space.slots.items():
            gone = ids[slot.offset : slot.offset + slot.size]
            if bool(gone.any()):
                keep[key] = torch.nonzero(~gone).flatten()
        return keep

    def dead_ids(self, dead: Tensor) -> Tensor:
        """Bool [ids]: whether each id goes with the dead groups."""
        if not self.count:
            return torch.zeros(0, dtype=torch.bool)
        flags = torch.zeros(self.count, dtype=torch.bool)
        flags[self.prunable_components()[dead.cpu()]] = True
        return flags[self.component]


def _produce(first: Dependencies) -> Tensor:
    flags = torch.zeros(first.space.size, dtype=torch.bool)
    for ids in first.passed:
        flags[ids] = True
    before = -1
    while before != (before := int(flags.sum())):
        for left, right in first.alike:
            either = flags[left] | flags[right]
            flags[left[either]] = True
            flags[right[either]] = True
    return flags & _parameters(first)


def _parameters(first: Dependencies) -> Tensor:
    """Bool [ids]: the indices of parameters, which can be set to zero."""
    flags = torch.zeros(first.space.size, dtype=torch.bool)
    for slot in first.space.slots.values():
        flags[slot.offset : slot.offset + slot.size] = slot.name in first.capture.parameters
    for ids in first.quantizer_ids:
        flags[ids] = False
    return flags


def _grouped(first: Dependencies) -> tuple[int, Tensor, Tensor, Zeros]:
    """Components and what is zeroed with them; anew where a mean is taken over some that are not zero then."""
    while True:
        ties, pins = list(first.space.ties), list(first.space.pins)
        count, component = _rectangular(first)
        produce, second = _zeroed(first, component, count)
        if not second.live:
            return count, component, produce, second
        first.space.ties, first.space.pins = ties, pins
        retreat(first, component, second.live)


def _zeroed(first: Dependencies, component: Tensor, count: int) -> tuple[Tensor, Zeros]:
    """Bool [ids]: what is zeroed with its group; and the second pass, which says where that is not enough.

    A group that leaves something behind where it is consumed (a scalar added to every channel, a sigmoid) is zeroed
    there, too: at the indices of the parameters that a contraction sums over. A product with a zero is zero, whatever
    the other factor is, as long as it is finite. What is consumed alone is no group: nothing of it is zeroed yet.
    """
    produce = _produce(first)
    second = _run(first, component, count, produce)
    wanted = torch.zeros(count, dtype=torch.bool)
    wanted[list(second.reasons.keys() - second.unbounded)] = True
    owned, free = torch.zeros_like(wanted), torch.ones_like(wanted)
    owned[component[produce]] = True
    for ids, _ in first.space.pins:
        free[component[ids]] = False
    wanted &= owned & free
    consumed = torch.zeros_like(produce)
    for ids in first.consumed:
        consumed[ids] = True
    more = produce | (consumed & wanted[component] & _parameters(first))
    if bool((more == produce).all()):
        return produce, second
    third = _run(first, component, count, more)
    third.live += second.live
    failed = torch.zeros(count, dtype=torch.bool)
    failed[list(third.reasons)] = True
    return torch.where(failed[component], produce, more), third


def _run(first: Dependencies, component: Tensor, count: int, produce: Tensor) -> Zeros:
    second = Zeros(first, component, count, produce)
    second.run()
    return second


def _rectangular(first: Dependencies) -> tuple[int, Tensor]:
    """Tie until what is left of every value is a block: no dimension may become ragged."""
    while True:
        count, component = first.space.components()
        if not _tie_ragged(first, component):
            return count, component


def _tie_ragged(first: Dependencies, component: Tensor) -> bool:
    pinned = torch.zeros(int(component.max()) + 1 if len(component) else 0, dtype=torch.bool)
    for ids, _ in first.space.pins:
        pinned[component[ids]] = True
    changed = False
    # Ties may already make the next value a block, so a component is tied at most once per round.
    touched = torch.zeros_like(pinned)
    for node, value in first.values.items():
        # Of several results, those that anything reads have nodes of their own.
        for layer in () if isinstance(value, list) else value:
            dims = varying(layer)
            if len(dims) < 2:
                continue
            parts = torch.where(layer >= 0, component[layer.clamp(min=0)], layer)
            # What must stay is like what has no label.
            parts = torch.where((parts >= 0) & pinned[parts.clamp(min=0)], torch.full_like(parts, -1), parts)
            if any(bool((parts == parts.narrow(d, 0, 1)).all()) for d in dims if len(dims) == 2):
                continue
            depends = [d for d in dims if not bool((parts == parts.narrow(d, 0, 1)).all())]
            if len(depends) < 2:
                continue
            changed = True
            here = parts[parts >= 0]
            if bool(touched[here].any()):
                continue
            touched[here] = True
            kept = _kept_dim(parts, sorted(depends))
            others = [dim for dim in depends if dim != kept]
            first.space.tie_across(layer, others, f"must stay a block, at {where(node)}")
    return changed


def _kept_dim(parts: Tensor, dims: Sequence[int]) -> int:
    """The dimension that a block keeps its indices of: the last along which no component reaches over several."""
    for dim in reversed(dims):
        rows = parts.movedim(dim, 0).flatten(1)
        places = torch.arange(len(rows)).unsqueeze(1).expand_as(rows)
        pairs = torch.stack([rows[rows >= 0], places[rows >= 0]])
        if torch.unique(pairs, dim=1).shape[1] == len(torch.unique(pairs[0])):
            return dim
    return dims[-1]


def _pin_chosen(first: Dependencies, config: CompressionConfig, model: nn.Module) -> None:
    """Pin what the user asked to pin, by module object or by name of a module or parameter."""
    if not config.pin:
        return
    inside = _of_quantizers(model)
    by_object = {id(module): name for name, module in model.named_modules() if id(module) not in inside}
    known_modules = set(by_object.values())
    own = set(torch.cat([*first.quantizer_ids, torch.zeros(0, dtype=torch.long)]).tolist())
    known = {slot.name for slot in first.space.slots.values() if slot.offset not in own}
    faults = []
    for item in config.pin:
        name = by_object.get(id(item)) if isinstance(item, nn.Module) else item
        if not isinstance(item, (nn.Module, str)):
            faults.append(f"pin: must hold modules and names, but got {item!r}")
        elif name is None:
            faults.append(f"pin: {type(item).__name__} is not a module of this model")
        elif name not in known_modules | known:
            faults.append(f"pin: there is no module or parameter {name!r}{closest(name, known_modules | known)}")
        else:
            _pin_named(first, [slot for slot in first.space.slots.values() if _inside(slot.name, name)])
    if faults:
        raise ConfigError(faults)


def _of_quantizers(model: nn.Module) -> set[int]:
    """Ids of the modules that quantizers and parametrizations brought along: they are not the user's."""
    found: set[int] = set()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            found.update(id(child) for child in cast(nn.Module, module.parametrizations).modules())
        elif isinstance(module, Quantizer):
            found.add(id(module))
    return found


def _inside(parameter: str, owner: str) -> bool:
    return parameter == owner or not owner or parameter.split(".")[: owner.count(".") + 1] == owner.split(".")


def _pin_named(first: Dependencies, slots: Iterable[Slot]) -> None:
    passed = torch.zeros(first.space.size, dtype=torch.bool)
    for ids in first.passed:
        passed[ids] = True
    for slot in slots:
        ids = torch.arange(slot.offset, slot.offset + slot.size)
        first.space.pin(torch.where(passed[ids], ids, torch.full_like(ids, -1)), "was pinned by the configuration")
