"""A text that lists the groups of a model family by family, for comparison with a committed file."""

from __future__ import annotations

from collections import Counter

import geta_core as geta
from geta_core.prepared import Prepared

Signature = tuple[str | None, tuple[tuple[str, int, int, str], ...]]


def signature(group: geta.Group) -> Signature:
    """What a group holds, without saying which indices."""
    members = sorted((m.name, m.dim, len(m.indices), m.role) for m in group.members)
    return group.pinned, tuple(members)


def contents(prepared: Prepared) -> set[tuple[str | None, frozenset[tuple[str, int, tuple[int, ...], str]]]]:
    """Every group with all its indices; tensors of quantizers are left out."""
    own = {id(p) for site in prepared.sites for p in site.quantizer.parameters()}
    tensors = prepared.graph.capture.tensors
    return {
        (
            group.pinned,
            frozenset((m.name, m.dim, m.indices, m.role) for m in group.members if id(tensors[m.name]) not in own),
        )
        for group in prepared.graph.groups
    }


def listing(prepared: Prepared) -> str:
    """Families in the order of their first group; groups that hold the same are counted together."""
    families: dict[int, Counter[Signature]] = {}
    for group in prepared.graph.groups:
        families.setdefault(group.family, Counter())[signature(group)] += 1
    groups = prepared.graph.groups
    lines = [f"{len(groups)} groups, {prepared.num_prunable} may go, {len(families)} families"]
    for found in families.values():
        for (pinned, members), count in found.items():
            lines += ["", f"{count} x {'may go' if pinned is None else 'stays: ' + pinned}"]
            lines += [f"  {role:8}{name} dim {dim} x {size}" for name, dim, size, role in members]
    return "\n".join(lines) + "\n"
