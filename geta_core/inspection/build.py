"""``geta.inspect``: what would happen to a model, without doing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from geta_core.accounting import macs
from geta_core.config import CompressionConfig
from geta_core.copying import copied
from geta_core.errors import ConfigError, UnsupportedOpError
from geta_core.graph import ExampleInputs, capture
from geta_core.graph.groups import Group
from geta_core.inspection import proof as proofs
from geta_core.inspection.costs import Costs
from geta_core.inspection.folding import fold
from geta_core.inspection.ops import Survey, operations
from geta_core.inspection.pins import pins
from geta_core.inspection.records import (
    FamilyRecord,
    GroupRecord,
    Inspection,
    MemberRecord,
    Proof,
    Savings,
    SiteRecord,
    Totals,
)
from geta_core.prepared import Prepared, prepare
from geta_core.quantize import replace_attention_


def inspect(
    model: nn.Module,
    example_inputs: Any,
    config: CompressionConfig | None = None,
    *,
    prove: bool = True,
    share: float = 0.3,
    seed: int = 0,
) -> Inspection:
    """Say what of ``model`` can be removed, what cannot and why, what it saves, and whether removal is exact.

    The model, its mode and the global random state stay as they are: everything happens in copies.

    Args:
        model: as for ``geta.prepare``.
        example_inputs: as for ``geta.prepare``.
        config: as for ``geta.prepare``.
        prove: remove random groups of a copy whose parameters were moved a little, and compare in float64.
        share: of each family's groups that the proof removes, 0 <= share < 1; at least one group of each family.
        seed: of the choice of groups and of that small move.

    Returns:
        Tables, the proof, and through ``svg()`` a picture. Operations without a rule are all listed in ``missing``.

    Raises:
        ConfigError: if ``share`` is out of its bounds, or the configuration pins what does not exist.
        GetaError: if the forward fails on the example or the model cannot be traced.
    """
    if not 0 <= share < 1:
        raise ConfigError([f"share must be a number with 0 <= share < 1, but got {share!r}"])
    config = config or CompressionConfig()
    inputs = ExampleInputs.of(example_inputs)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        work, settings = copied((model, config))
        try:
            prepared = prepare(work, inputs, settings)
        except UnsupportedOpError as error:
            return _unsupported(model, inputs, config, error)
        proof = _proof(model, inputs, config, share, seed) if prove else None
    return _found(prepared, proof)


def _proof(model: nn.Module, inputs: ExampleInputs, config: CompressionConfig, share: float, seed: int) -> Proof:
    generator = torch.Generator().manual_seed(seed)
    work, settings = copied((model, config))
    proofs.scatter_(work, generator)
    return proofs.prove(prepare(work, inputs, settings), share, generator)


def _unsupported(
    model: nn.Module, inputs: ExampleInputs, config: CompressionConfig, error: UnsupportedOpError
) -> Inspection:
    """Operations and everything that is missing, from a capture of the float model."""
    work = copied(model)
    replace_attention_(work)
    captured = capture(work, inputs)
    survey = Survey(captured, config)
    survey.run()
    missing = survey.missing()
    if not missing:
        raise error
    parameters = sum(captured.tensors[name].numel() for name in captured.parameters)
    return Inspection(
        operations=operations(captured, survey.reached()),
        missing=missing,
        families=(),
        groups=(),
        pins=(),
        sites=(),
        totals=Totals(parameters, 0, 0.0, 0, 0, 0),
        proof=proofs.untried(0, "operations without a rule"),
        blocks=(),
        edges=(),
    )


def _found(prepared: Prepared, proof: Proof | None) -> Inspection:
    graph = prepared.graph
    costs = Costs(prepared.account)
    numbers = torch.arange(prepared.num_prunable)
    groups, families = _groups(prepared, costs), _families(prepared, costs)
    everything, _ = costs.saved(torch.zeros_like(numbers), 1)
    none = prepared.none_dead()
    totals = Totals(
        parameters=prepared.account.parameters(none),
        prunable_parameters=int(everything[0]),
        macs=macs(prepared.dense),
        groups=len(groups),
        prunable_groups=prepared.num_prunable,
        families=len(families),
    )
    nodes = [node for node in graph.capture.graph.nodes if node.op == "call_function"]
    blocks, edges = fold(prepared)
    return Inspection(
        operations=operations(graph.capture, [node for node in nodes if graph.first.tracked(node)]),
        missing=(),
        families=families,
        groups=groups,
        pins=pins(graph),
        sites=_sites(prepared),
        totals=totals,
        proof=proof or proofs.untried(prepared.num_prunable, "not asked for"),
        blocks=blocks,
        edges=edges,
    )


def _sites(prepared: Prepared) -> tuple[SiteRecord, ...]:
    """Every quantizer; one whose step no operation reads cannot fire either, as in a layer that is never called."""
    captured = prepared.graph.capture
    read = {id(captured.tensors[name]) for node, name in captured.names.items() if node.users}
    idle = {
        site: None if id(site.quantizer.d) in read else "its layer is not used in the captured graph"
        for site in prepared.sites
    }
    return tuple(
        SiteRecord(site.name, site.kind, site.reason or idle.get(site)) for site in [*prepared.sites, *prepared.silent]
    )


def _groups(prepared: Prepared, costs: Costs) -> tuple[GroupRecord, ...]:
    count = prepared.num_prunable
    parameters, work = costs.saved(torch.arange(count), count)
    none = Savings(0, 0.0)
    return tuple(
        GroupRecord(
            id=group.id,
            family=group.family,
            members=tuple(MemberRecord(m.name, m.dim, len(m.indices), m.role) for m in group.members),
            saved=Savings(int(parameters[group.id]), float(work[group.id])) if group.pinned is None else none,
            pinned=group.pinned,
            inexact=group.inexact,
        )
        for group in prepared.graph.groups
    )


def _families(prepared: Prepared, costs: Costs) -> tuple[FamilyRecord, ...]:
    graph = prepared.graph
    of_group = graph.family[graph.prunable_components()]
    count = int(graph.family.max()) + 1 if graph.family.numel() else 0
    parameters, work = costs.saved(of_group, max(count, 0))
    members: dict[int, list[Group]] = {}
    for group in graph.groups:
        members.setdefault(group.family, []).append(group)
    return tuple(
        FamilyRecord(
            id=family,
            groups=len(found),
            prunable=sum(group.pinned is None for group in found),
            tensors=_tensors(found[0]),
            saved=Savings(int(parameters[family]), float(work[family])),
            inexact=any(group.inexact for group in found),
        )
        for family, found in sorted(members.items())
    )


def _tensors(group: Group) -> tuple[str, ...]:
    ordered = sorted(group.members, key=lambda member: member.role != "PRODUCE")
    return tuple(f"{member.name}[{member.dim}]" for member in ordered)
