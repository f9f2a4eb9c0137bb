"""What an inspection says, as plain frozen records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Treatment = Literal["own rule", "packet", "element-wise", "not needed", "missing"]
"""How an operation is treated: by a rule for exactly this overload; by the rule of its overload packet; by the
element-wise rule, because torch tags it so; not at all, since no parameter index reaches it; or there is no rule."""

Kind = Literal["input", "weight", "join", "step", "output"]
"""weight: multiplies with, or looks up, a parameter; join: has several inputs; step: anything else."""

SCHEMA = "geta-inspection/1"


@dataclass(frozen=True)
class Place:
    """Where in the model and in its source an operation stands."""

    module: str
    """Path of the innermost module, "" for the model itself."""
    operation: str
    source: str
    """``file:line: code`` of the deepest frame outside torch, "" where torch.export keeps none."""


@dataclass(frozen=True)
class Operation:
    """One kind of operation in the captured graph."""

    name: str
    count: int
    treatment: Treatment
    rule: str
    """Where the rule is defined, ``module:function``; "" without one."""


@dataclass(frozen=True)
class MissingOperation:
    """An operation that cannot be treated; every one of them is listed, not only the first."""

    name: str
    why: str
    places: tuple[Place, ...]
    fix: str
    """The line to write."""


@dataclass(frozen=True)
class Savings:
    """What goes when something is removed alone."""

    parameters: int
    """Elements of the model's parameters."""
    macs: float
    """MACs per example, definition ``paper``."""


@dataclass(frozen=True)
class MemberRecord:
    """Indices of one tensor dimension that belong to a group."""

    name: str
    dim: int
    count: int
    role: str
    """PRODUCE: zeroed and cut; CONSUME: cut alone; BUFFER: the same for what is no parameter."""


@dataclass(frozen=True)
class GroupRecord:
    """One group: what is removed together."""

    id: int
    family: int
    members: tuple[MemberRecord, ...]
    saved: Savings
    """Zero for a pinned group."""
    pinned: str | None
    inexact: bool


@dataclass(frozen=True)
class FamilyRecord:
    """Groups that are made of the same tensor dimensions."""

    id: int
    groups: int
    prunable: int
    tensors: tuple[str, ...]
    """The tensor dimensions as ``name[dim]``, those that are zeroed first."""
    saved: Savings
    """If every prunable group of the family were removed; in a run ``min_kept`` of them stay."""
    inexact: bool


@dataclass(frozen=True)
class Pin:
    """Groups of one family that must stay for one reason."""

    reason: str
    family: int
    groups: int
    tensor: str
    """The first tensor dimension that would have to be zeroed."""
    place: Place


@dataclass(frozen=True)
class SiteRecord:
    """One quantizer."""

    name: str
    kind: Literal["weight", "input"]
    reason: str | None
    """Why it cannot fire; None where it works."""


@dataclass(frozen=True)
class Totals:
    """Sums over the model."""

    parameters: int
    prunable_parameters: int
    """Elements that belong to at least one group that is not pinned."""
    macs: float
    groups: int
    prunable_groups: int
    families: int

    @property
    def prunable_share(self) -> float:
        """``prunable_parameters`` over ``parameters``."""
        return self.prunable_parameters / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Proof:
    """Whether the model with random groups at zero equals the one without them, in float64."""

    holds: bool | None
    """None where it was not tried."""
    removed: int
    groups: int
    error: float | None
    """Largest difference relative to max(1, largest output); None where there is no result to compare."""
    tolerance: float
    kind: Literal["native", "graph module", ""]
    """native: the user's own module class was cut; graph module: its traced graph was."""
    reason: str
    """Why the module class could not be cut, why the proof fails, or why it was not tried."""


@dataclass(frozen=True)
class Block:
    """One box of the picture: an operation and what is folded into it."""

    id: int
    kind: Kind
    module: str
    operation: str
    chips: tuple[str, ...]
    """What follows in the same box, in order."""
    quantized: tuple[str, ...]
    """Kinds of the quantizers in front: "weight", "input"."""
    shape: tuple[int, ...]
    """Of the result, with the batch."""
    family: int | None
    """Family of the result's channels; None where they stand for nothing that can be removed."""
    channels: int
    free: int
    """Channels whose group is not pinned."""
    pinned: str | None
    """Why the others stay."""


@dataclass(frozen=True)
class Inspection:
    """What ``geta.inspect`` finds. Nothing is removed, and the model stays as it was."""

    operations: tuple[Operation, ...]
    missing: tuple[MissingOperation, ...]
    """If not empty, there are no groups, pins, sites and proof."""
    families: tuple[FamilyRecord, ...]
    groups: tuple[GroupRecord, ...]
    pins: tuple[Pin, ...]
    sites: tuple[SiteRecord, ...]
    totals: Totals
    proof: Proof
    blocks: tuple[Block, ...]
    """Boxes of the picture, in the order of the computation."""
    edges: tuple[tuple[int, int], ...]
    """Pairs of block ids."""

    @property
    def sound(self) -> bool:
        """No operation lacks a rule, and the proof did not fail."""
        return not self.missing and self.proof.holds is not False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the keys are the fields, see ``docs/inspect.md``."""
        found = dataclasses.asdict(self)
        found["totals"]["prunable_share"] = self.totals.prunable_share
        return {"schema": SCHEMA, "sound": self.sound, **_lists(found)}

    def svg(self) -> str:
        """The graph as an SVG picture, families in colours."""
        from geta_core.inspection.svg import draw

        return draw(self)


def _lists(value: Any) -> Any:
    """Tuples as lists, at any depth, so that reading the JSON back gives the same value."""
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return [_lists(each) for each in value] if isinstance(value, (tuple, list)) else value
