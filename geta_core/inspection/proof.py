"""The proof: random groups at zero, and the same model without them, must compute the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from geta_core.errors import PruningError
from geta_core.finishing import finish
from geta_core.graph.capture import first_line
from geta_core.inspection.records import Proof
from geta_core.prepared import Prepared
from geta_core.slim.verify import TOLERANCE_64

NOISE = 0.1
"""Standard deviation that is added to every parameter, relative to its root mean square."""


def scatter_(model: nn.Module, generator: torch.Generator) -> None:
    """Move every parameter and running statistic a little, in place.

    A fresh model holds zeros and ones (biases, norms, last layers of branches) behind which a wrong rule would not
    show.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                size = float(parameter.detach().double().square().mean().sqrt())
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((noise * NOISE * (size or 1.0)).to(parameter))
        for module in model.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
                shape = module.running_mean.shape
                mean = torch.randn(shape, generator=generator, dtype=torch.float64)
                factor = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
                module.running_mean.add_((NOISE * mean).to(module.running_mean))
                module.running_var.mul_(factor.to(module.running_var))


def choose(prepared: Prepared, share: float, generator: torch.Generator) -> Tensor:
    """Random groups of every family: about ``share`` of it, at least one, and never more than the policy allows.

    Args:
        prepared: gives families and policy; groups that are inexact by the user's choice are left out.
        share: of each family, 0 <= share <= 1.
        generator: source of the choice.

    Returns:
        Long [chosen], group numbers in order.
    """
    exact = ~prepared.graph.inexact[prepared.graph.prunable_components()]
    keep, unit = prepared.config.min_kept, prepared.config.divisible_by
    chosen = []
    for family in range(int(prepared.family.max()) + 1 if prepared.num_prunable else 0):
        members = torch.nonzero((prepared.family == family) & exact).flatten()
        total = int((prepared.family == family).sum())
        wanted = max(1, round(share * len(members))) if share > 0 else 0
        stay = math.ceil(max(total - wanted, keep) / unit) * unit
        order = members[torch.randperm(len(members), generator=generator)]
        chosen.append(order[: max(0, total - stay)])
    return torch.sort(torch.cat([torch.zeros(0, dtype=torch.long), *chosen])).values


def prove(prepared: Prepared, share: float, generator: torch.Generator) -> Proof:
    """Zero random groups of a prepared model IN PLACE, remove them in a copy, and compare both in float64."""
    chosen = choose(prepared, share, generator)
    numbers = (len(chosen), prepared.num_prunable)
    prepared.zero_(chosen.tolist())
    try:
        report = finish(prepared).report
    except PruningError as error:
        gap = error.gap if error.gap is not None and math.isfinite(error.gap) else None
        return Proof(False, *numbers, gap, TOLERANCE_64, "", str(error))
    except Exception as error:  # noqa: BLE001  # whatever a wrong rule leads to is a failed proof, with its reason
        return Proof(False, *numbers, None, TOLERANCE_64, "", f"the slimmed model does not run: {first_line(error)}")
    reason = report.native_refusal if len(chosen) else "there is nothing that can be removed"
    if report.train_refusal:
        reason += f"; train mode is that of eval mode: {report.train_refusal}"
    return Proof(
        holds=report.max_error64 <= TOLERANCE_64,
        removed=numbers[0],
        groups=numbers[1],
        error=report.max_error64,
        tolerance=TOLERANCE_64,
        kind="native" if report.native else "graph module",
        reason=reason,
    )


def untried(prepared_groups: int, reason: str) -> Proof:
    """The record of a proof that was not tried."""
    return Proof(None, 0, prepared_groups, None, TOLERANCE_64, "", reason)
