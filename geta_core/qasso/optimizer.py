"""QASSO: one torch.optim.Optimizer around another that prunes and quantizes in four stages (arXiv:2502.16638)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from geta_core.clocked import ClockedOptimizer, defaults_of
from geta_core.config import LOWEST_BITS, CompressionConfig
from geta_core.errors import ConfigError, ScheduleError
from geta_core.qasso.budgeted import budget_of, corrected_share
from geta_core.qasso.forgetting import Decay, PrunableRows, decay_factor
from geta_core.qasso.joint import Products, forget_rate, step_size
from geta_core.qasso.quant_update import QuantVectors, Vectors
from geta_core.qasso.saliency import SaliencyWeights, score_groups
from geta_core.qasso.schedule import PeriodStep, Schedule, Stage
from geta_core.qasso.segments import Slot
from geta_core.qasso.selection import Selector
from geta_core.quantize.sites import QuantSite

PLAIN_SGD = {"weight_decay": 0, "momentum": 0, "dampening": 0, "nesterov": False}
"""What the quantizers' parameter group overrides where the inner optimizer has it."""


class PreparedModel(Protocol):
    """What QASSO reads of the object that ``geta_core.prepare`` returns."""

    @property
    def model(self) -> nn.Module:
        """The model, its quantizers attached."""

    @property
    def config(self) -> CompressionConfig:
        """Targets and policy."""

    @property
    def sites(self) -> Sequence[QuantSite]:
        """Every place where the model is quantized."""

    @property
    def slots(self) -> Sequence[Slot]:
        """The prunable dimensions of parameters whose rows are zeroed."""

    @property
    def num_prunable(self) -> int:
        """Number of groups that may be pruned."""

    @property
    def family(self) -> Tensor:
        """Family number of each group, long, shape [num_prunable]."""

    def bind(self, optimizer: Any) -> None:
        """Take note of the optimizer whose stage decides whether the model can be finished."""


class QASSO(ClockedOptimizer):
    """Quantization-aware structured sparse optimizer around a torch.optim class.

    Parameter group 0 holds the model's parameters, group 1 (where the model has quantizers) d, q_m and t with
    ``lr_quant`` and without weight decay or momentum: with ``torch.optim.SGD`` they follow plain gradient descent, as
    in the paper; with an adaptive class they follow its rule. Both groups obey learning rate schedulers. Groups and
    state are shared with the inner optimizer, so that hooks of this object run once; torch's global optimizer hooks run
    for both.

    The direction g of the paper's rules is the inner optimizer's movement over the learning rate without weight decay.
    Decoupled decay is taken out exactly. Of the L2 term of SGD the part of this step is taken out, which is all of it
    without momentum; the L2 term of other classes is a part of their direction.

    Guarantees: exactly ``target_groups`` groups are zero when the joint stage ends (fewer by less than ``divisible_by``
    where that is above 1) and stay so; from the end of the projection stage on every bit width is in its range after
    every step; a trajectory that is resumed from ``state_dict`` at any step is bit-identical. ``step`` never waits for
    the device, but for the two steps in which a budget decides.

    Args:
        prepared: result of ``geta_core.prepare``.
        inner: class of the inner optimizer, e.g. torch.optim.SGD, Adam or AdamW.
        schedule: lengths of the stages.
        lr_quant: learning rate of d, q_m and t.
        scale_step_gradient: scale the gradient of d by 1 / sqrt(elements x levels), as LSQ does.
        eta: constant of the rule for gamma, in (0, 1).
        zeta: constant of the rule for d, in (0, 1).
        saliency: weights of the five criteria, 0.2 each by default.
        inner_kwargs: arguments of ``inner``, among them ``lr``.

    Raises:
        ConfigError: eta, zeta or lr_quant out of bounds, or a slot that does not fit the model.
        ScheduleError: groups are to be pruned, but the joint stage has no step.
    """

    def __init__(
        self,
        prepared: PreparedModel,
        inner: type[torch.optim.Optimizer],
        *,
        schedule: Schedule,
        lr_quant: float = 1e-4,
        scale_step_gradient: bool = True,
        eta: float = 0.999,
        zeta: float = 0.9,
        saliency: SaliencyWeights | None = None,
        **inner_kwargs: Any,
    ) -> None:
        config = prepared.config
        _check(eta=eta, zeta=zeta, lr_quant=lr_quant)
        self.schedule, self.total_steps = schedule, schedule.total
        self.eta, self.zeta = eta, zeta
        self._saliency = saliency or SaliencyWeights()
        self._scale_step_gradient = scale_step_gradient
        self._sites = list(prepared.sites)
        ranges = {"weight": config.weight_bits, "input": config.activation_bits}
        self._quant = QuantVectors(self._sites, ranges, config.initial_bits, config.allowed_bits)
        self._budget = budget_of(prepared)
        self._rows = PrunableRows(prepared.slots, self._quant.spans, prepared.num_prunable)
        self._selector = Selector(
            prepared.family,
            sparsity=config.sparsity,
            min_kept=config.min_kept,
            divisible_by=config.divisible_by,
        )
        if self.target_groups and not schedule.joint:
            raise ScheduleError(
                f"sparsity={config.sparsity:g} asks for {self.target_groups} groups to be pruned in the joint stage, "
                "but schedule.joint is 0; give the joint stage steps or set sparsity to 0"
            )
        defaults = defaults_of(inner, **inner_kwargs)
        super().__init__(_parameter_groups(prepared.model, self._quant.parameters(), defaults, lr_quant), defaults)
        self._clock = 0
        self._fixing: tuple[Stage, ...] = ("cooldown",)
        self._pruned = torch.zeros(prepared.num_prunable, dtype=torch.bool, device=self._rows.device)
        self._redundant = torch.zeros_like(self._pruned)
        self._fixed_bits: Tensor | None = None
        self.inner = inner(self.param_groups, **inner_kwargs)
        self._share()
        prepared.bind(self)

    @property
    def stage(self) -> Stage:
        """Stage of the next step."""
        return self.schedule.stage_at(self._clock)[0]

    @property
    def target_groups(self) -> int:
        """Number of groups that will be zero: int(sparsity * groups), or what ``min_kept`` and divisibility allow."""
        return self._selector.target

    @property
    def pruned(self) -> Tensor:
        """Which groups are held at zero, bool, shape [groups]."""
        return self._pruned.clone()

    def pruned_groups(self) -> int:
        """Return the number of groups that are held at zero; waits for the device."""
        return int(self._pruned.sum())

    def fixed_bits(self) -> dict[str, Tensor]:
        """Return the whole bit widths of each site by its name, long, shaped like d.

        They are those of the cooldown, or, before it, the present ones rounded and clamped to their range.
        """
        if not len(self._quant):
            return {}
        self._quant.refresh()
        return self._by_site(self._whole_bits(self._quant.read()) if self._fixed_bits is None else self._fixed_bits)

    def _by_site(self, bits: Tensor) -> dict[str, Tensor]:
        pieces = dict(zip(map(id, self._quant.quantizers), torch.split(bits, self._quant.sizes), strict=True))
        return {site.name: pieces[id(site.quantizer)].view_as(site.quantizer.d).clone() for site in self._sites}

    def _whole_bits(self, vectors: Vectors) -> Tensor:
        """Return the bit widths to be fixed, long, shape [entries]; under a budget the host decides them, once."""
        bits = self._quant.whole_bits(vectors)
        if self._budget is None:
            return bits
        found = self._budget.within_budget(self._pruned, self._by_site(bits))
        names = {id(site.quantizer): site.name for site in self._sites}
        return torch.cat([found[names[id(quantizer)]].reshape(-1) for quantizer in self._quant.quantizers])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that are only trained, never pruned or quantized."""
        super().add_param_group(param_group)
        if hasattr(self, "inner"):
            self._share()

    def _share(self) -> None:
        """Point the inner optimizer to this object's groups and state; build the tables here, not in a step."""
        self.inner.param_groups, self.inner.state = self.param_groups, self.state
        self._rows.assign({id(p): number for number, group in enumerate(self.param_groups) for p in group["params"]})
        self._refresh()

    def _advance(self) -> None:
        """Take the inner optimizer's step, then follow the rule of the present stage."""
        self._refresh()
        stage, at = self.schedule.stage_at(self._clock)
        period = self.schedule.period_at(at) if stage == "joint" and self.target_groups else None
        before = self._quant.read() if len(self._quant) else None
        if stage in self._fixing and before is not None and self._fixed_bits is None:
            self._fixed_bits = self._whole_bits(before)
        if period is not None:
            self._rows.remember()
        with self._scaled_gradients(before):
            self.inner.step()
        grid = self._project(before) if before is not None else None
        if period is None:
            self._rows.release()
            self._rows.hold()
        else:
            grid = self._forget(period, before, grid)
        if grid is not None:
            self._quant.write_steps(grid.d)

    def _refresh(self) -> None:
        """Follow parameters whose memory has moved; does nothing in other steps."""
        self._quant.refresh()
        if not self._rows.refresh():
            return
        device = self._rows.device
        self._selector.to(device)
        self._pruned, self._redundant = self._pruned.to(device), self._redundant.to(device)
        self._rows.mark_redundant(self._redundant)
        started = self._clock > self.schedule.warmup + self.schedule.projection
        self._rows.mark_pruned(self._pruned if started else None)

    def _scaled_gradients(self, before: Vectors | None) -> AbstractContextManager[None]:
        if before is None or not self._scale_step_gradient:
            return nullcontext()
        return self._quant.scaled_gradients(before)

    def _project(self, before: Vectors) -> Grid:
        """Return d projected to the present bit ranges with the freshly updated q_m and t (PPSG: only d is moved)."""
        after = self._quant.read_positive(before)
        top = after.top()
        low, high = {}, {}
        warm = self.stage == "warmup"
        for kind, (lowest, highest) in self._quant.ranges.items():
            low[kind] = LOWEST_BITS if warm else lowest
            high[kind] = self.schedule.max_bits(self._clock, self._quant.initial, highest)
        d_min, d_max = self._quant.bounds(low, high, top)
        if self._fixed_bits is not None:
            return Grid(self._quant.steps_of(self._fixed_bits, top), d_min, d_max)
        return Grid(torch.minimum(torch.maximum(after.d, d_min), d_max), d_min, d_max)

    def _forget(self, period: PeriodStep, before: Vectors | None, grid: Grid | None) -> Grid | None:
        """Do the joint stage's part of a step; return the grid with d by the rule where a layer has redundant rows."""
        rows, decay = self._rows, self._decay()
        rows.gather()
        if period.step == 0:
            score = score_groups(rows.group_sums(decay), rows.group_size, ~self._pruned, self._saliency)
            share = self._selector.share(period.period, self.schedule.pruning_periods)
            if self._budget is not None and period.period == self.schedule.pruning_periods - 1:
                share = corrected_share(self._budget, self._selector, score, self._pruned, share)
            self._redundant = self._selector.choose(score, self._pruned, share)
            rows.mark_redundant(self._redundant)
        products = rows.products(before, decay)
        gamma = self._rate(products, 1 / (period.length - period.step))
        if grid is not None:
            gamma, grid = self._learn_steps(products, gamma, grid)
        if period.step == period.length - 1:
            self._pruned = self._pruned | self._redundant
            self._redundant = torch.zeros_like(self._redundant)
            rows.mark_pruned(self._pruned)
        rows.forget(gamma, before)
        return grid

    def _rate(self, products: Products, uniform: float) -> Tensor:
        """Return gamma of each segment."""
        return forget_rate(products, uniform, self.eta)

    def _learn_steps(self, products: Products, gamma: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Set d by the joint stage's rule in the layers that have redundant rows and a direction."""
        entries = self._rows.entry_of_segment
        count = entries.numel()
        own = Products(*(product[:count] for product in products))
        d_min, d_max = (bound.index_select(0, entries).double() for bound in (grid.d_min, grid.d_max))
        slower, ruled = step_size(own, gamma[:count], d_min, d_max, self.zeta * self.eta)
        # Without any movement (lr = 0, no gradient) there is nothing to learn d from: it stays where PPSG left it.
        applies = (self._rows.segment_rows[:count] > 0) & (own.gg > 0)
        gamma = torch.cat([torch.where(applies, slower, gamma[:count]), gamma[count:]])
        chosen = torch.where(applies, ruled.to(grid.d.dtype), grid.d.index_select(0, entries))
        return gamma, grid._replace(d=grid.d.index_copy(0, entries, chosen))

    def _decay(self) -> Decay:
        """Return 1 - lr * weight decay of each parameter group where the decay can be taken out of the movement."""
        return [decay_factor(group, isinstance(self.inner, torch.optim.SGD)) for group in self.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state and the stage state: tensors, numbers and strings only."""
        state = super().state_dict()
        state["qasso"] = {
            **self._identity(),
            "clock": self._clock,
            "pruned": self._pruned,
            "redundant": self._redundant,
            "fixed_bits": self._fixed_bits,
        }
        return state

    def _identity(self) -> dict[str, Any]:
        """Return what a state must agree on with this optimizer."""
        return {
            "inner": type(self.inner).__name__,
            "schedule": asdict(self.schedule),
            "groups": self._pruned.numel(),
            "target_groups": self.target_groups,
            "quantizer_entries": len(self._quant),
            "parameters": [len(group["params"]) for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state from :meth:`state_dict`; the trajectory goes on bit for bit.

        Raises:
            ScheduleError: the state is of another optimizer, schedule or model; nothing has been changed then.
        """
        own = state_dict.get("qasso")
        if own is None:
            raise ScheduleError("the state must come from QASSO.state_dict(), but it has no entry 'qasso'")
        different = [
            f"{key} is {own.get(key)} in the state and {value} here"
            for key, value in self._identity().items()
            if own.get(key) != value
        ]
        if different:
            raise ScheduleError(
                "the state belongs to another run: "
                + "; ".join(different)
                + "; resume with the settings that it was saved with"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "qasso"})
        device = self._rows.device
        self._clock = own["clock"]
        self._pruned, self._redundant = own["pruned"].to(device).clone(), own["redundant"].to(device).clone()
        fixed = own["fixed_bits"]
        self._fixed_bits = None if fixed is None else fixed.to(self._quant.quantizers[0].d.device).clone()
        self._share()


class Grid(NamedTuple):
    """Step sizes of all quantizers and the bounds of their present bit ranges, each of shape [entries]."""

    d: Tensor
    d_min: Tensor
    d_max: Tensor


def _check(eta: float, zeta: float, lr_quant: float) -> None:
    faults = [
        f"{name} must lie strictly between 0 and 1, but got {value!r}"
        for name, value in (("eta", eta), ("zeta", zeta))
        if not 0 < value < 1
    ]
    if not lr_quant >= 0:
        faults.append(f"lr_quant must be >= 0, but got {lr_quant!r}")
    if faults:
        raise ConfigError(faults)


def _parameter_groups(
    model: nn.Module, quantizer: list[nn.Parameter], defaults: dict[str, Any], lr_quant: float
) -> list[dict[str, Any]]:
    """Return the model's parameters, each once, and the quantizers' in a group of their own."""
    own = {id(parameter) for parameter in quantizer}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in own]}]
    if quantizer:
        plain = {key: value for key, value in PLAIN_SGD.items() if key in defaults}
        groups.append({"params": quantizer, "lr": lr_quant, **plain})
    return groups
