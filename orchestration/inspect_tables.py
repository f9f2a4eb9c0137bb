"""An inspection as tables, readable at 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestration.console import table, write

if TYPE_CHECKING:
    from geta_core import Inspection
    from geta_core.inspection.records import GroupRecord, Place

SHOWN_TENSORS = 3
"""Tensors of a family or group that are named; the others are counted."""


def show(found: Inspection, *, every_group: bool) -> None:
    """Print everything that an inspection found.

    Args:
        found: what ``geta.inspect`` returned.
        every_group: list the groups too, not only the families.
    """
    _operations(found)
    if found.missing:
        _missing(found)
        return
    _families(found)
    if every_group:
        _groups(found.groups)
    _pins(found)
    _sites(found)
    totals = found.totals
    write(
        f"parameters: {totals.prunable_parameters:,} of {totals.parameters:,} ({totals.prunable_share:.2%}) belong to "
        "a group that can be removed"
    )
    write(
        f"groups: {totals.prunable_groups:,} of {totals.groups:,} in {totals.families} families can be removed; "
        f"{totals.macs:,.0f} MACs per example"
    )
    write(proof_line(found))


def proof_line(found: Inspection) -> str:
    """The proof in one line."""
    proof = found.proof
    if proof.holds is None:
        return f"proof: not tried ({proof.reason})"
    error = "" if proof.error is None else f"largest difference {proof.error:.2g} (tolerance {proof.tolerance:g})"
    what = f"{proof.removed:,} of {proof.groups:,} groups removed at random"
    if not proof.holds:
        return f"proof FAILS: {what}; {proof.reason}"
    how = f"{proof.kind}{', because ' + proof.reason if proof.reason else ''}"
    return f"proof holds: {what}, zeroed equals slimmed in float64, {error}; {how}"


def _operations(found: Inspection) -> None:
    rows = [
        [row.name, str(row.count), row.treatment, row.rule.removeprefix("geta_core.graph.rules.")]
        for row in found.operations
    ]
    table("Operations", ["operation", "count", "treated by", "rule"], rows, texts=(2, 3))


def _missing(found: Inspection) -> None:
    rows = [[row.name, str(len(row.places)), row.why, _place(row.places[0])] for row in found.missing]
    table("Operations that cannot be treated", ["operation", "count", "why", "first at"], rows, texts=(2, 3))
    write("each needs a rule before anything can be removed (see docs/rules.md):")
    for row in found.missing:
        write(f"  {row.fix or row.why}")


def _families(found: Inspection) -> None:
    first = {group.family: group.saved for group in reversed(found.groups) if group.pinned is None}
    rows = []
    for family in found.families:
        one = first.get(family.id)
        rows.append(
            [
                f"F{family.id}{'*' if family.inexact else ''}",
                _listed(family.tensors),
                f"{family.prunable:,} of {family.groups:,}",
                "-" if one is None else f"{one.parameters:,}",
                "-" if one is None else f"{one.macs:,.0f}",
                f"{family.saved.parameters:,}",
                f"{family.saved.macs:,.0f}",
            ]
        )
    heads = ["", "tensors", "free", "params\nof one", "MACs\nof one", "params\nof all", "MACs\nof all"]
    table("Families: groups of the same tensors, and what removing one of them, or all, saves", heads, rows, texts=(1,))
    if any(family.inexact for family in found.families):
        write("* a normalization reduces over these groups: removing them changes the result")


def _groups(groups: Sequence[GroupRecord]) -> None:
    rows = []
    for group in groups:
        members = [f"{m.name}[{m.dim}]" + (f" x {m.count}" if m.count > 1 else "") for m in group.members]
        saved = [f"{group.saved.parameters:,}", f"{group.saved.macs:,.0f}"] if group.pinned is None else ["stays", "-"]
        rows.append([str(group.id), f"F{group.family}", ", ".join(members), *saved])
    table("Groups", ["group", "family", "members", "params", "MACs"], rows, texts=(2,))


def _pins(found: Inspection) -> None:
    if not found.pins:
        return
    rows = [
        [f"F{pin.family}", f"{pin.groups:,}", pin.tensor, pin.reason.partition(", at ")[0], _place(pin.place)]
        for pin in found.pins
    ]
    table("What must stay", ["", "groups", "tensor", "it", "module and line"], rows, texts=(2, 3, 4))


def _sites(found: Inspection) -> None:
    idle = [[site.name, site.kind, site.reason] for site in found.sites if site.reason is not None]
    working = [site.kind for site in found.sites if site.reason is None]
    if idle:
        rows = [[name, kind, str(reason)] for name, kind, reason in idle]
        table("Quantizers that cannot fire", ["quantizer", "of", "because"], rows, texts=(1, 2))
    write(f"quantizers: {working.count('weight')} of weights, {working.count('input')} of inputs")


def _place(place: Place) -> str:
    return "; ".join(filter(None, [place.module or "top level", place.source]))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_TENSORS
    return ", ".join(names[:SHOWN_TENSORS]) + (f" + {more}" if more > 0 else "")
