"""PAT: pruning-aware training, through torchao (``torchao.prototype.pat``, no paper of its own), then quantization.

``PruneOptimizer`` wraps the run's optimizer: after each step of the latent weights a proximal map zeroes groups of
what the model computes with (AProx, arXiv:2503.15748), and from ``heal`` on the groups that are zero stay zero while
the rest is trained on. Two of the library's maps: ``constraint`` (MinSparsityConstraint: the groups of smallest norm,
as many as ``sparsity`` asks, reached on the library's cubic schedule) and ``lasso`` (ProxGroupLasso with
``reg_lambda``).

Differs: the library's groups are rows of single weights; here they are the groups of the dependency graph, given to
the library as one matrix per family (a row holds every parameter that goes with one group), so that what it zeroes can
be removed. ``constraint`` takes the same share of every family. ``lasso`` decides by the strength of its pull how much
goes, and is therefore neither asked for a relative BOPs nor part of the space that is tuned. Weights and layer inputs
are quantized after training, as in ``ptq_only``, since PAT only prunes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.helpers.post_training import PostTraining
from baselines.matching import Matching
from baselines.schema import Bounds
from baselines.search import Space, declared
from baselines.torchao_rivals.library import LibraryOptimizer, demand_finished, torchao
from geta_core.errors import ConfigError
from geta_core.graph import PruneSlot


@dataclass(frozen=True, kw_only=True)
class Pat(PostTraining, Matching):
    """Groups zeroed by a proximal map while training, then post-training quantization."""

    PAPER: ClassVar[str] = "PAT, torchao.prototype.pat; no paper of its own (its map: arXiv:2503.15748)"
    CONTROLS: ClassVar[str] = "which groups are removed, then one bit width for weights and one for layer inputs"
    SEARCH: ClassVar[Space] = declared(__file__, "pat")

    sparsity: Annotated[float, Bounds(0, 1, below=True)] = 0.5
    """Fraction of the prunable groups that are exactly zero at the end (prox=constraint only)."""
    prox: Literal["constraint", "lasso"] = "constraint"
    """The library's proximal map."""
    reg_lambda: Annotated[float, Bounds(0, above=True)] = 1e-3
    """Weight of the group lasso (prox=lasso only)."""
    warmup: Annotated[float, Bounds(0, 1)] = 0.1
    """Share of the run of ordinary training."""
    heal: Annotated[float, Bounds(0, 1, above=True)] = 0.6
    """Share of the run after which what is zero stays so."""
    min_kept: Annotated[int, Bounds(1)] = 1
    """Fewest groups that are kept in each family (prox=constraint only)."""

    def matched(self, model: nn.Module, example_inputs: Any) -> Self:
        """Return this method with knobs that meet ``match_bops``.

        Raises:
            ConfigError: when it cannot be met; by ``lasso`` it never can, since no knob of it is a number of groups.
        """
        if self.prox == "lasso" and self.match_bops is not None:
            raise ConfigError(
                [
                    f"method.match_bops={self.match_bops} needs method.prox=constraint: with lasso, how much goes is "
                    f"decided by method.reg_lambda ({self.reg_lambda:g}) while it trains"
                ]
            )
        return super().matched(model, example_inputs)

    def prepare(self, model: nn.Module, example_inputs: Any, calibration: Sequence[Any]) -> geta.Prepared:
        """Find the groups."""
        torchao("torchao.prototype.pat.optim")
        config = geta.CompressionConfig(sparsity=0.0, weight_bits=None, activation_bits=None, min_kept=self.min_kept)
        return geta.prepare(model, example_inputs, config)

    def optimizer(
        self, prepared: geta.Prepared, total_steps: int, optimizer_class: type[torch.optim.Optimizer], **keywords: Any
    ) -> torch.optim.Optimizer:
        """Return the library's optimizer around the given class."""
        return PatOptimizer(self, prepared, optimizer_class, total_steps, keywords)

    def finish(self, prepared: geta.Prepared, calibration: Sequence[Any]) -> geta.Compressed:
        """Quantize the pruned model and remove the zero groups."""
        demand_finished(prepared)
        return self.quantized(prepared, calibration)


class FamilyMatrix:
    """The groups of one family as rows of a matrix: every PRODUCE member of a group side by side.

    Args:
        slots: parameter dimensions that hold members of the family.
        groups: numbers of its groups, long [rows].
    """

    def __init__(self, slots: Sequence[PruneSlot], groups: Tensor) -> None:
        self.groups = groups
        self._parts: list[tuple[PruneSlot, Tensor]] = []
        place = torch.full((int(groups.max()) + 2,), -1)
        place[groups] = torch.arange(len(groups))
        for slot in slots:
            known = (slot.group >= 0) & (slot.group <= int(groups.max()))
            row = torch.where(known, place[slot.group.clamp(0, len(place) - 1)], torch.full_like(slot.group, -1))
            index = torch.argsort(row, stable=True)[(row < 0).sum() :]
            if len(index):
                self._parts.append((slot, index.to(slot.parameter.device)))
        self.parameter = nn.Parameter(self.read())

    def read(self) -> Tensor:
        """Return the members' present values, [rows, elements of a group]."""
        rows = len(self.groups)
        parts = [s.parameter.detach().index_select(s.dim, i).movedim(s.dim, 0) for s, i in self._parts]
        return torch.cat([part.reshape(rows, -1) for part in parts], 1)

    @torch.no_grad()
    def write(self) -> None:
        """Write the matrix into the members."""
        at = 0
        for slot, index in self._parts:
            shape = slot.parameter.movedim(slot.dim, 0).shape[1:]
            width = len(index) // len(self.groups) * shape.numel()
            part = self.parameter.detach()[:, at : at + width].reshape(len(index), *shape).movedim(0, slot.dim)
            slot.parameter.index_copy_(slot.dim, index, part)
            at += width


def family_matrices(prepared: geta.Prepared) -> list[FamilyMatrix]:
    """Return the matrices of all families; groups with other numbers of indices than their family's have their own."""
    counts = torch.stack(
        [torch.bincount(slot.group[slot.group >= 0], minlength=prepared.num_prunable) for slot in prepared.slots]
        + [prepared.family],
        1,
    )
    _, kind = torch.unique(counts, dim=0, return_inverse=True)
    return [FamilyMatrix(prepared.slots, torch.nonzero(kind == each).flatten()) for each in kind.unique()]


def even_shares(sizes: Sequence[int], total: int, min_kept: int) -> list[int]:
    """Return how many groups each family loses: the same share of each, ``total`` together where that is possible."""
    most = [max(size - min_kept, 0) for size in sizes]
    total = min(total, sum(most))
    exact = [total * size / max(sum(sizes), 1) for size in sizes]
    found = [min(int(each), limit) for each, limit in zip(exact, most, strict=True)]
    while sum(found) < total:
        free = [number for number, limit in enumerate(most) if found[number] < limit]
        found[max(free, key=lambda number: exact[number] - found[number])] += 1
    return found


class _Wrapped:
    """What the library takes for its base optimizer: steps the weights themselves, and shows it the matrices."""

    def __init__(self, owner: PatOptimizer) -> None:
        self._owner = owner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._owner.param_groups

    @property
    def state(self) -> Any:
        return self._owner.state

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Write the latent matrices into the weights, step those, and read them back."""
        for matrix in self._owner.matrices:
            matrix.write()
        self._owner.inner.step()
        self._owner.read_matrices()


class PatOptimizer(LibraryOptimizer):
    """The optimizer of :class:`Pat`: group 0 holds the weights, one further group each family's matrix."""

    def __init__(
        self,
        method: Pat,
        prepared: geta.Prepared,
        inner: type[torch.optim.Optimizer],
        total_steps: int,
        keywords: dict[str, Any],
    ) -> None:
        self.method = method
        # The library needs one ordinary step, so that the inner optimizer's state exists before its own.
        self.first = max(1, min(round(method.warmup * total_steps), total_steps - 2))
        self.heal = max(self.first + 1, min(round(method.heal * total_steps), total_steps))
        self.matrices = family_matrices(prepared) if prepared.num_prunable else []
        sizes = [len(matrix.groups) for matrix in self.matrices]
        shares = even_shares(sizes, int(method.sparsity * prepared.num_prunable), method.min_kept)
        groups: list[dict[str, Any]] = [{"params": list(prepared.model.parameters())}]
        for matrix, share in zip(self.matrices, shares, strict=True):
            kind: dict[str, Any] = {"prox_type": "ProxGroupLasso", "reg_lambda": method.reg_lambda}
            if method.prox == "constraint":
                # The library rounds up the share times the rows: half a row less gives the number that is meant.
                exact = max(share - 0.5, 0) / len(matrix.groups)
                kind = {"prox_type": "MinSparsityConstraint", "min_sparsity": exact, "min_sparsity_schedule": True}
            groups.append({"params": [matrix.parameter], "group_type": "Dim0Grouper", **kind})
        super().__init__(prepared, groups, inner, keywords, total_steps)

    def stepped_groups(self) -> list[dict[str, Any]]:
        """Return the weights' group; the matrices mirror a part of it."""
        return self.param_groups[:1]

    @property
    def stage(self) -> str:
        """Stage of the next step."""
        return "warmup" if self._clock < self.first else "prune" if self._clock < self.heal else "heal"

    def build(self) -> Any:
        """Return the library's optimizer."""
        pat = torchao("torchao.prototype.pat.optim")
        return pat.PruneOptimizer(_Wrapped(self), warmup_steps=self.first, healing_start_step=self.heal)

    def read_matrices(self) -> None:
        """Bring the matrices up to date with the weights."""
        for matrix in self.matrices:
            matrix.parameter.detach().copy_(matrix.read())

    def _advance(self) -> None:
        """Call the library, and write what its map has zeroed into the weights."""
        if not self.matrices:
            self.inner.step()
            return
        for matrix in self.matrices:  # the library skips parameters without a gradient; its own uses none of it
            matrix.parameter.grad = torch.zeros_like(matrix.parameter)
        self.library.step()
        for matrix in self.matrices:
            matrix.write()

    def loaded(self) -> None:
        """Read the matrices from the weights, which are restored already."""
        self.read_matrices()
