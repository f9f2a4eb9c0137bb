"""What all workers of a run must hold alike: brought about at the start, checked at the end of every period.

Gradients are averaged over the workers, and everything that QASSO decides follows from parameters, gradients and its
own state by the same arithmetic. Masks and bit widths are therefore equal on all workers by construction; a
fingerprint shows it, and a run whose workers differ stops instead of training several models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geta_core import Prepared
from geta_core.errors import GetaError
from orchestration.state import Session
from orchestration.world import World


def agree_at_start(world: World, prepared: Prepared) -> None:
    """Give every worker the leader's parameters, buffers and quantizers, before anything is built on them.

    The workers have prepared the same model from the same calibration batches, but devices of different make round
    differently: ranges, grids and everything else are the leader's.

    Raises:
        GetaError: when the workers have found different groups or quantization sites.
    """
    if world.size == 1:
        return
    sites = prepared.sites
    require_equal(
        world,
        {
            "quantization sites": fingerprint([site.name for site in sites]),
            "groups": fingerprint([(slot.name, slot.dim, slot.group) for slot in prepared.slots] + [prepared.family]),
        },
        "at the start",
    )
    world.share_([*prepared.model.parameters(), *prepared.model.buffers()])
    grids = torch.tensor([[int(site.quantizer.signed), site.numel] for site in sites], dtype=torch.int64)
    world.share_([grids])
    for site, (signed, numel) in zip(sites, grids.tolist(), strict=True):
        site.quantizer.signed, site.numel = bool(signed), numel


def check_agreement(session: Session) -> None:
    """Compare masks, bit widths and weights of all workers.

    Raises:
        GetaError: naming what differs and between which workers; on all workers alike.
    """
    if session.world.size > 1:
        require_equal(session.world, fingerprints(session), f"after step {session.step}")


def fingerprints(session: Session) -> dict[str, bytes]:
    """Return digests of the optimizer's decisions (masks, fixed bits), of the quantizers and of all parameters."""
    shared = ("state", "param_groups")  # of every torch optimizer: what is not a decision
    decisions = {key: value for key, value in session.optimizer.state_dict().items() if key not in shared}
    model, sites = session.prepared.model, session.prepared.sites
    return {
        "pruning masks": fingerprint([decisions, session.prepared.zero_mask()]),
        "bit widths": fingerprint([(q.signed, q.d, q.q_m, q.t) for q in (site.quantizer for site in sites)]),
        "weights": fingerprint(model.parameters()),
    }


def require_equal(world: World, found: Mapping[str, bytes], when: str) -> None:
    """Compare digests over all workers.

    Raises:
        GetaError: naming the first thing that differs, and which workers hold the same.
    """
    rows = world.collect(b"".join(found.values()))
    size = hashlib.sha256().digest_size
    for number, what in enumerate(found):
        camps: dict[bytes, list[int]] = {}
        for rank, row in enumerate(rows):
            camps.setdefault(row[number * size : (number + 1) * size], []).append(rank)
        if len(camps) > 1:
            raise GetaError(
                f"all workers must hold the same {what}, but {when} they differ: {_against(list(camps.values()))}; "
                "use workers with the same kind of device, run.deterministic=true and the same versions"
            )


def _against(camps: Sequence[Sequence[int]]) -> str:
    names = [f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" for ranks in camps]
    return " against ".join(names)


def fingerprint(values: Iterable[Any]) -> bytes:
    """Return the sha256 of nested plain values and tensors, bit for bit; reads the tensors from their device."""
    from torch.utils._pytree import tree_leaves

    digest = hashlib.sha256()
    for leaf in tree_leaves(list(values), is_leaf=lambda value: value is None):
        if isinstance(leaf, Tensor):
            whole = leaf.detach().reshape(-1).cpu()
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(whole.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
        digest.update(b";")
    return digest.digest()
