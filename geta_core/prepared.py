"""A prepared model: quantizers attached, groups known, costs countable at any time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from geta_core.accounting import FLOAT_BITS, Account, Measurement, average_bits, bops, macs, measurement
from geta_core.budget import Budget, Latency
from geta_core.clocked_budget import removed_within
from geta_core.config import CompressionConfig
from geta_core.errors import GetaError
from geta_core.graph import ExampleInputs, Group, GroupGraph, PruneSlot, capture
from geta_core.graph.capture import forget_
from geta_core.planning import AIM, HIGHEST_SPARSITY, cost_of, fewest_removed, fitted, planned
from geta_core.quantize import (
    QuantSite,
    attach,
    calibrate_,
    detach_input_,
    detach_weight_,
    replace_attention_,
    restore_attention,
)
from geta_core.slim.graph_module import batch_size


class Scheduled(Protocol):
    """What ``finish`` asks of an optimizer with a schedule."""

    @property
    def finished(self) -> bool:
        """Whether the schedule is complete."""

    def fixed_bits(self) -> dict[str, Tensor]:
        """Whole bit widths of every site by its name."""


class Prepared:
    """A model with quantizers attached in place, and what can be removed from it.

    Attributes:
        model: the user's module, changed in place.
        config: the targets.
        graph: ``graph.groups`` lists what can be removed together; ``group.pinned`` is None or the reason why not.
        sites: the quantizers.
        silent: quantizers that cannot fire; ``site.reason`` says why.
        unquantized: their names, with the reason (layers whose input is among them are weight-only).
        slots: parameter dimensions that QASSO scores, forgets and zeroes.
        num_prunable: number of groups that may be removed.
        family: long [num_prunable], family of each group.
        budget: what the finished model may cost, None where sparsity and bit ranges were stated; ``config`` holds those
            that were found for it.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CompressionConfig,
        inputs: ExampleInputs,
        sites: list[QuantSite],
        graph: GroupGraph,
    ) -> None:
        self.model, self.config, self.inputs, self.graph = model, config, inputs, graph
        self.sites = [site for site in sites if site.fired]
        self.silent = [site for site in sites if not site.fired]
        self.unquantized = {site.name: site.reason for site in self.silent}
        self.slots: list[PruneSlot] = graph.prune_slots()
        self.num_prunable = graph.num_prunable
        self.family = graph.prunable_families()
        self.account = Account(graph, self.sites, batch_size(inputs))
        self.optimizer: Scheduled | None = None
        self.budget: Budget | None = None
        self.plan_bits = 0
        self.dense = self.account.layers(self.none_dead(), {site.name: FLOAT_BITS for site in self.sites})

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        """A copy with a model and quantizers of its own; the optimizer, if one is bound, stays the original's."""
        new = copy.copy(self)
        memo[id(self)] = new
        new.model, new.sites, new.inputs = copy.deepcopy((self.model, self.sites, self.inputs), memo)
        new.graph = self.graph.rebound(memo)
        new.slots = new.graph.prune_slots()
        new.account = Account(new.graph, new.sites, batch_size(new.inputs))
        return new

    def bind(self, optimizer: Scheduled) -> None:
        """Remember the optimizer, so that ``finish`` can refuse while its schedule is unfinished."""
        self.optimizer = optimizer

    def none_dead(self) -> Tensor:
        """Bool [num_prunable], all False."""
        return torch.zeros(self.num_prunable, dtype=torch.bool)

    def zero_mask(self) -> Tensor:
        """Bool [num_prunable] on the CPU: groups whose every PRODUCE member is exactly zero in the parameters now."""
        live: dict[torch.device, Tensor] = {}
        for slot in self.slots:
            device = slot.parameter.device
            flags = live.setdefault(device, torch.zeros(self.num_prunable + 1, dtype=torch.long, device=device))
            rows = (slot.parameter.detach() != 0).movedim(slot.dim, 0).reshape(len(slot.group), -1).any(1)
            index = torch.where(slot.group >= 0, slot.group, torch.full_like(slot.group, self.num_prunable))
            flags.index_add_(0, index.to(device), rows.long())
        dead = torch.ones(self.num_prunable, dtype=torch.bool)
        for flags in live.values():
            dead &= flags[:-1].cpu() == 0
        return dead

    def zero_groups(self) -> int:
        """How many groups are exactly zero now, counted from the parameters."""
        return int(self.zero_mask().sum())

    def zero_(self, groups: Iterable[int | Group]) -> None:
        """Set groups to zero by hand.

        Args:
            groups: groups or their ids (prunable groups have the ids 0 .. num_prunable - 1).

        Raises:
            GetaError: for a pinned group, with its reason.
        """
        dead = self.none_dead()
        for item in groups:
            group = self.graph.groups[item] if isinstance(item, int) else item
            if group.pinned is not None:
                raise GetaError(f"group {group.id} cannot be removed: it {group.pinned}")
            dead[group.id] = True
        with torch.no_grad():
            for slot in self.slots:
                index = torch.nonzero((slot.group >= 0) & dead[slot.group.clamp(min=0)]).flatten()
                slot.parameter.index_fill_(slot.dim, index.to(slot.parameter.device), 0)
        forget_(self.model)

    def bits(self) -> dict[str, float]:
        """Bit width of every site now (the mean over its channels); that of a float where values pass unchanged."""
        return {
            site.name: FLOAT_BITS if site.quantizer.observer is not None else float(site.quantizer.bits().mean())
            for site in self.sites
        }

    def measure(self) -> Measurement:
        """Costs with the groups that are zero now removed, at the bit widths of now."""
        dead, bits = self.zero_mask(), self.bits()
        layers = self.account.layers(dead, bits, self.densities(dead))
        widths = {site.name: site.quantizer.bits() for site in self.sites if site.kind == "weight"}
        return measurement(layers, self.account.parameters(dead), self.account.stored_bytes(dead, widths))

    def removed_within_budget(self, choose: Callable[[int], Tensor], low: int) -> int | None:
        """Return how many groups are to be removed so that the budget is met, at the plan's bit width or by the clock.

        Args:
            choose: gives the removed groups, bool [num_prunable], for a number of them.
            low: number of groups that are removed already.

        Returns:
            None where there is no budget.
        """
        kind, most = self.budget, int(HIGHEST_SPARSITY * self.num_prunable)
        if kind is None:
            return None
        if isinstance(kind, Latency):
            return removed_within(self, kind, choose, low, most)
        bits = {site.name: torch.full_like(site.quantizer.d.detach().cpu(), self.plan_bits) for site in self.sites}

        def cost(count: int) -> float:
            return cost_of(self.account, choose(count).cpu(), kind)(bits)

        return fewest_removed(cost, AIM * kind.limit, low, most)

    def within_budget(self, dead: Tensor, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole bit widths that meet the budget; those given where there is none that bits could meet.

        Args:
            dead: bool [num_prunable], the groups that are removed.
            whole: widths of every site by its name, long, shaped like its step.

        Raises:
            PruningError: if the lowest widths of the ranges cost more than the budget.
        """
        if self.budget is None or isinstance(self.budget, Latency):
            return dict(whole)
        first = {id(site.quantizer): site.name for site in reversed(self.sites)}
        heads = {site.name: site for site in self.sites if first[id(site.quantizer)] == site.name}
        of_all = cost_of(self.account, dead.cpu(), self.budget)

        def cost(bits: Mapping[str, Tensor]) -> float:
            return of_all({site.name: bits[first[id(site.quantizer)]] for site in self.sites})

        ranges = {"weight": self.config.weight_bits, "input": self.config.activation_bits}
        found = fitted(
            cost,
            self.budget.limit,
            {name: whole[name].cpu() for name in heads},
            {name: site.quantizer.bits().cpu() for name, site in heads.items()},
            {name: self.config.widths(ranges[site.kind]) for name, site in heads.items()},
        )
        return {site.name: found[first[id(site.quantizer)]].to(whole[site.name].device) for site in self.sites}

    def densities(self, dead: Tensor) -> dict[str, float]:
        """Share of nonzero elements of every weight, as the model computes with it, without the groups ``dead``."""
        keep, tensors = self.graph.kept(dead), self.graph.capture.tensors
        found = {}
        for product in self.account.products:
            if product.operand is None or product.name not in tensors:
                continue
            values = tensors[product.name].detach()
            if product.weight_site is not None:
                values = product.weight_site.quantizer.levels(values)
            for dim in range(values.dim()):
                index = keep.get((product.name, dim))
                values = values if index is None else values.index_select(dim, index.to(values.device))
            if values.numel():
                found[product.name] = float((values != 0).double().mean())
        return found

    def status(self) -> dict[str, float]:
        """Group sparsity, average weight and activation bits, and relative BOPs of now."""
        dead, bits = self.zero_mask(), self.bits()
        layers = self.account.layers(dead, bits)
        weight_bits, activation_bits = average_bits(layers)
        dense = macs(self.dense)
        return {
            "group_sparsity": int(dead.sum()) / self.num_prunable if self.num_prunable else 0.0,
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "relative_bops": bops(layers) / (dense * FLOAT_BITS**2) if dense else 0.0,
        }


def prepare(
    model: nn.Module,
    example_inputs: Any,
    config: CompressionConfig | None = None,
    *,
    calibration: Iterable[Any] | None = None,
) -> Prepared:
    """Attach quantizers to ``model`` IN PLACE, and find its groups.

    Args:
        model: any module that torch.export can trace; nn.MultiheadAttention inside it is replaced by a drop-in
        with the same
            parameter names.
        example_inputs: a tensor, a tuple, or a dict of keyword inputs; batch >= 2, on the model's device.
        config: targets and policy; defaults to ``CompressionConfig()``.
        calibration: batches like ``example_inputs`` from which the ranges of the layer inputs are taken; without
        them the
            example inputs themselves are used. They run in the mode that the model is in: train mode for a model that
            will be trained, eval mode for post-training quantization.

    Returns:
        The prepared model.

    Raises:
        GetaError: if the forward fails on the example or the model cannot be traced.
        UnsupportedOpError: if an operation has no dependency rule.
        ConfigError: if the configuration pins what does not exist.
    """
    asked = config or CompressionConfig()
    inputs = ExampleInputs.of(example_inputs)
    _check_forward(model, inputs)
    config, budget, plan_bits = planned(model, inputs, asked)
    restore, sites = restore_attention(model), list[QuantSite]()
    try:
        replace_attention_(model)
        sites = attach(model, config)
        batches = [inputs] if calibration is None else (ExampleInputs.of(batch) for batch in calibration)
        calibrate_(model, sites, batches, _run)
        captured = _capture_fired(model, inputs, sites)
        prepared = Prepared(model, config, inputs, sites, GroupGraph(captured, config, model))
        prepared.budget, prepared.plan_bits = budget, plan_bits
        return prepared
    except BaseException:
        _undo(sites)
        restore()
        raise


def _run(model: nn.Module, batch: ExampleInputs) -> None:
    from geta_core.graph.capture import first_line

    try:
        batch.run(model)
    except Exception as error:
        raise GetaError(f"the model's forward fails on a calibration batch: {first_line(error)}") from error


def _check_forward(model: nn.Module, inputs: ExampleInputs) -> None:
    from geta_core.graph.capture import first_line
    from geta_core.slim.verify import with_batch

    modes = {module: module.training for module in model.modules()}
    more, what = batch_size(inputs) + 1, ""
    try:
        with torch.no_grad():
            # Exported modules have an eval() that returns nothing.
            model.eval()
            inputs.run(model)
            what = f" with {more} instead of {more - 1} rows (it must take any batch size)"
            with_batch(inputs, more).run(model)
    except Exception as error:
        raise GetaError(f"the model's forward fails on the example inputs{what}: {first_line(error)}") from error
    finally:
        for module, training in modes.items():
            module.training = training


def _capture_fired(model: nn.Module, inputs: ExampleInputs, sites: list[QuantSite]) -> Any:
    """Capture, and take away the quantizers that no value passes through: they are reported, never counted."""
    for site in sites:
        if site.reason is not None and site.kind == "input":
            detach_input_(site)
    captured = capture(model, inputs)
    present = {id(captured.tensors[name]) for node, name in captured.names.items() if node.users}
    silent = [site for site in sites if site.reason is None and id(site.quantizer.d) not in present]
    for site in silent:
        site.reason = "no value passes through it in the captured graph"
        _detach(site)
    return capture(model, inputs) if silent else captured


def _detach(site: QuantSite) -> None:
    if site.kind == "input":
        detach_input_(site)
    else:
        detach_weight_(site)


def _undo(sites: Iterable[QuantSite]) -> None:
    """Leave the weights and hooks as they were."""
    for site in sites:
        _detach(site)
