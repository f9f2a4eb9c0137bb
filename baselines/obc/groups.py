"""ExactOBS with dependency groups as structure: a channel goes where the layers that read it can best do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.hessian import damped_inverse, grams
from baselines.helpers.matrix import MatrixLayer
from baselines.helpers.pruner import Budget
from baselines.helpers.surgeon import block_costs, remove_block_
from baselines.obc.weights import matrix_layers
from geta_core.qasso.selection import Selector


@dataclass
class _Reader:
    """A layer that reads prunable channels.

    Attributes:
        parameter: its weight.
        layer: the weight as [groups, rows, columns].
        weight: float64 copy of it, changed as channels go.
        inverse: H^-1 of each group, of the columns that are left.
        energy: mean square of the layer's output, which costs are relative to.
        blocks: columns that each dependency group has in this layer, long.
    """

    parameter: nn.Parameter
    layer: MatrixLayer
    weight: Tensor
    inverse: Tensor
    energy: Tensor
    blocks: dict[int, Tensor]

    def costs(self) -> dict[int, Tensor]:
        """Return the cost of each dependency group in this layer."""
        found: dict[int, Tensor] = {}
        sizes = {len(columns) for columns in self.blocks.values()}
        for size in sorted(sizes):
            own = [group for group, columns in self.blocks.items() if len(columns) == size]
            blocks = torch.stack([self.blocks[group] for group in own])
            parts = [block_costs(w, z, blocks) for w, z in zip(self.weight, self.inverse, strict=True)]
            found |= dict(zip(own, torch.stack(parts).sum(0) / self.energy, strict=True))
        return found

    def remove_(self, group: int) -> None:
        """Do without a group's channels."""
        for weight, inverse in zip(self.weight, self.inverse, strict=True):
            remove_block_(weight, inverse, self.blocks[group])


class GroupSurgeon:
    """Prunes the groups of a trained float model, in place.

    Args:
        prepared: without quantizers; its configuration says how many groups go.
        batches: calibration inputs, for which outputs are to stay what they are.
        damping: of the Hessians.
    """

    def __init__(self, prepared: geta.Prepared, batches: Sequence[Any], damping: float) -> None:
        self._prepared = prepared
        self._readers, self._blind = _readers(prepared, batches, damping)
        self._costs = [reader.costs() for reader in self._readers]

    def scores(self) -> Tensor:
        """Return what each group costs now, float64 [groups]; infinite where some reader cannot be measured."""
        total = torch.zeros(self._prepared.num_prunable, dtype=torch.float64)
        read = torch.zeros(self._prepared.num_prunable, dtype=torch.bool)
        for costs in self._costs:
            groups = torch.tensor(list(costs))
            total[groups] += torch.stack(list(costs.values())).cpu()
            read[groups] = True
        return total.masked_fill(self._blind | ~read, torch.inf)

    @torch.no_grad()
    def prune_(self, budget: Budget | None) -> Tensor:
        """Remove groups, the cheapest first, until there are enough.

        Args:
            budget: when it is met there are; None: the configuration's sparsity decides.

        Returns:
            The removed groups, bool [groups].

        Raises:
            PruningError: when groups would have to go whose readers cannot be measured.
        """
        config = self._prepared.config
        selector = Selector(
            self._prepared.family,
            sparsity=config.sparsity if budget is None else 1.0,
            min_kept=config.min_kept,
            divisible_by=config.divisible_by,
        )
        dead = self._prepared.none_dead()
        while int(dead.sum()) < selector.target:
            score = self.scores()
            # One group; or, where those kept must be divisible, the block that makes them so.
            share = min(int(dead.sum()) + config.divisible_by, selector.target)
            chosen = selector.choose(score, dead, share)
            if not bool(chosen.any()) or (budget is not None and budget.nearer(dead, dead | chosen)):
                break
            if bool(score[chosen].isinf().any()):
                raise geta.PruningError(
                    f"{int(dead.sum())} of {selector.target} groups can be removed: the others are read by layers that "
                    "are no matrix product of their input; lower method.sparsity"
                )
            self._remove(chosen)
            dead |= chosen
        for reader in self._readers:
            reader.parameter.copy_(reader.layer.weight(reader.weight))
        self._prepared.zero_(torch.nonzero(dead).flatten().tolist())
        return dead

    def _remove(self, chosen: Tensor) -> None:
        for group in torch.nonzero(chosen).flatten().tolist():
            for number, reader in enumerate(self._readers):
                if group in reader.blocks:
                    reader.remove_(group)
                    del reader.blocks[group]
                    self._costs[number] = {}
        for number, reader in enumerate(self._readers):
            if not self._costs[number] and reader.blocks:
                self._costs[number] = reader.costs()


def _readers(prepared: geta.Prepared, batches: Sequence[Any], damping: float) -> tuple[list[_Reader], Tensor]:
    """Return the layers that read prunable channels, and which groups are read where nothing can be measured."""
    views = matrix_layers(prepared.model)
    by_parameter = {id(module.get_parameter("weight")): module for module in views}
    tensors = prepared.graph.capture.tensors
    blocks: dict[nn.Module, dict[int, list[Tensor]]] = {}
    blind = prepared.none_dead()
    for group in prepared.graph.groups[: prepared.num_prunable]:
        for member in group.members:
            if member.role != "CONSUME":
                continue
            module = by_parameter.get(id(tensors[member.name]))
            if module is None or member.dim != views[module].input_dim:
                blind[group.id] = True
                continue
            columns = views[module].columns_of(torch.tensor(member.indices)).flatten()
            blocks.setdefault(module, {}).setdefault(group.id, []).append(columns)
    found = grams(prepared.model, {module: views[module] for module in blocks}, batches)
    readers = []
    for module, gram in found.items():
        parameter = module.get_parameter("weight")
        weight = views[module].matrix(parameter.detach()).double().clone()
        energy = ((weight @ gram.xx) * weight).sum()
        own = {group: torch.cat(parts).to(weight.device) for group, parts in blocks[module].items()}
        inverse = damped_inverse(gram.xx, damping)
        readers.append(_Reader(parameter, views[module], weight, inverse, energy.clamp(min=1e-30), own))
    return readers, blind
