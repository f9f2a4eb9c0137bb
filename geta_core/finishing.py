"""From the trained model to the smaller one, with the proof that both compute the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geta_core.accounting import measurement
from geta_core.budget import Latency
from geta_core.config import HIGHEST_BITS, LOWEST_BITS, CompressionConfig
from geta_core.copying import copied
from geta_core.errors import PruningError, ScheduleError
from geta_core.graph import ExampleInputs
from geta_core.graph.capture import first_line, forget_
from geta_core.planning import cost_of
from geta_core.prepared import Prepared
from geta_core.qasso.quant_update import nearest_allowed
from geta_core.quantize import QuantSite, bake_
from geta_core.report import QuantizedWeight, Report
from geta_core.slim.flips import flipped_share
from geta_core.slim.graph_module import slim_graph
from geta_core.slim.native import Change, apply_, slim_native
from geta_core.slim.verify import (
    TOLERANCE_64,
    Difference,
    as_double,
    difference,
    new_tensors,
    unrounded,
    without_input_quantizers,
)

TOLERANCE_32 = 1e-5
"""Largest difference in float32 without activation quantizers, relative to the largest output (at least 1)."""


@dataclass
class Compressed:
    """A finished model.

    Attributes:
        model: the user's own module class with smaller parameters, or a graph module; weights lie on their grids.
        report: costs and proof.
        weights: bit width and step of each quantized weight.
        keep: indices of the dense model that stayed.
        changes: integer attributes that follow the cut.
        inputs: the example.
    """

    model: nn.Module
    report: Report
    weights: dict[str, QuantizedWeight]
    keep: dict[tuple[str, int], Tensor]
    changes: tuple[Change, ...]
    inputs: ExampleInputs

    def save(self, directory: Any) -> None:
        """Write ``model.safetensors`` and ``manifest.json`` into ``directory`` (see ``geta_core.artifact``)."""
        from geta_core.artifact import save

        save(self, directory)

    def export_onnx(self, path: Any, *, int4: bool = True, fold: bool = False) -> None:
        """Write the model as ONNX: whole-number weights, quantized inputs, any batch size (see ``geta_core.export``).

        Args:
            path: of the file.
            int4: store up to 4 bits as INT4; False takes INT8 for them, which more kernels compute with.
            fold: multiply batch norms into the steps of the convolutions before them, so that integer kernels take the
                whole layer: faster, but these kernels round its bias, and a few answers may differ from the model's.

        Raises:
            GetaError: if onnx or onnxscript is missing, or the model has an operation that ONNX lacks.
        """
        from geta_core.export import export_onnx

        export_onnx(self.model, self.weights, self.inputs, path, int4=int4, fold=fold)

    def export_pt2(self, path: Any) -> None:
        """Write the model as a program of aten operations, which ``torch.export.load`` reads without geta."""
        from geta_core.export import export_pt2

        export_pt2(self.model, self.inputs, path)


def finish(prepared: Prepared, *, early: bool = False) -> Compressed:
    """Remove the groups that are zero, fix the bits as they are, and prove that nothing else changed.

    ``prepared`` and its model stay as they are.

    Args:
        prepared: after training, or straight from ``prepare``.
        early: allow this while a QASSO schedule is unfinished.

    Returns:
        The compressed model without parametrizations.

    Raises:
        ScheduleError: if a bound schedule is unfinished and ``early`` is false.
        PruningError: if the proof fails.
    """
    optimizer = prepared.optimizer
    if optimizer is not None and not optimizer.finished and not early:
        raise ScheduleError(
            "finish: the QASSO schedule is not complete, so sparsity and bits are not what was asked for; "
            "train to the schedule's end, or pass early=True"
        )
    work, sites = copied((prepared.model, prepared.sites))
    _fix_bits(sites, optimizer.fixed_bits() if optimizer is not None else {}, prepared.config)
    dead = prepared.zero_mask()
    _check_alive(prepared, dead)
    keep = prepared.graph.kept(dead)
    inexact = int((prepared.graph.inexact[prepared.graph.prunable_components()] & dead).sum())
    if not early:
        _check_budget(prepared, sites, dead)
    made = _slim(prepared, work, sites, dead, keep, inexact)
    weights = _weights(sites, keep, prepared)
    report = _report(prepared, made, sites, dead, weights)
    return Compressed(made.model.eval(), report, weights, keep, made.changes, prepared.inputs)


def _check_budget(prepared: Prepared, sites: Iterable[QuantSite], dead: Tensor) -> None:
    """A budget of BOPs or bytes is kept."""
    budget = prepared.budget
    if budget is None or isinstance(budget, Latency):
        return
    cost = cost_of(prepared.account, dead, budget)({site.name: site.quantizer.bits().round() for site in sites})
    if cost > budget.limit:
        raise PruningError(
            f"the model costs {cost:.6g} {budget.unit}, more than the budget of {budget.limit:.6g}; train with QASSO, "
            "which keeps it, or pass early=True"
        )


def _check_alive(prepared: Prepared, dead: Tensor) -> None:
    """A layer keeps at least one channel."""
    whole = torch.bincount(prepared.family, minlength=1)
    gone = torch.bincount(prepared.family[dead], minlength=len(whole))
    for family in torch.nonzero((gone == whole) & (whole > 0)).flatten().tolist():
        first = int(torch.nonzero(prepared.family == family)[0])
        names = ", ".join(sorted({member.name for member in prepared.graph.groups[first].members}))
        raise PruningError(
            f"every one of the {int(whole[family])} groups of {names} is zero, and a layer must keep at least one; "
            "prune less, or raise min_kept"
        )


@dataclass(frozen=True)
class _Made:
    model: nn.Module
    changes: tuple[Change, ...]
    refusal: str | None
    trains: str
    error64: Difference
    error32: Difference
    flips: float | None
    inexact: int


def _slim(
    prepared: Prepared,
    work: nn.Module,
    sites: list[QuantSite],
    dead: Tensor,
    keep: dict[tuple[str, int], Tensor],
    inexact: int,
) -> _Made:
    exact, heads = inexact == 0, prepared.config.heads
    inputs, inputs64 = prepared.inputs, as_double(prepared.inputs)
    forget_(work)
    work64, sites64 = copied((work, sites))
    work64.double()
    baked, baked64 = _baked(work, sites), _baked(work64, sites64)
    with new_tensors(torch.float64):
        _check_double(work64, inputs64)
        changes, refusal = slim_native(baked64, prepared.graph, dead, keep, inputs64, exact=exact)
        model64, trains = _cut(baked64, inputs64, keep, changes, heads)
        smoothed = any(site.kind == "input" for site in sites)
        rounded = _gap64(work64, model64, inputs64, trains, smoothed)
        error64 = rounded if rounded.worst <= TOLERANCE_64 else _unrounded(work64, model64, inputs64, trains, smoothed)
    model, error32 = model64, rounded
    # In another default type the forward may make other constants.
    if not (_is_double(work) and torch.get_default_dtype() == torch.float64):
        model, trains = _cut(baked, inputs, keep, changes, heads)
        error32 = _compared(work, model, inputs, trains)
    flips = flipped_share(prepared, work, model, sites, dead)
    if exact:
        _demand(error64, error32, flips is None, refusal if changes is None else None)
    return _Made(model, changes or (), refusal if changes is None else None, trains, error64, error32, flips, inexact)


def _cut(
    baked: nn.Module,
    inputs: ExampleInputs,
    keep: dict[tuple[str, int], Tensor],
    changes: tuple[Change, ...] | None,
    heads: str,
) -> tuple[nn.Module, str]:
    """The smaller model, and why its train mode is not the model's own."""
    return slim_graph(baked, inputs, keep, heads) if changes is None else (apply_(baked, keep, changes), "")


def _compared(zeroed: nn.Module, slim: nn.Module, inputs: ExampleInputs, trains: str) -> Difference:
    """The difference, in train mode too where the slimmed model has the model's own."""
    try:
        return difference(zeroed, slim, inputs, train=not trains)
    except Exception as error:
        raise PruningError(f"zeroed and slimmed model must both run, but one fails: {first_line(error)}") from error


def _gap64(zeroed: nn.Module, slim: nn.Module, inputs: ExampleInputs, trains: str, smoothed: bool) -> Difference:
    found = _compared(zeroed, slim, inputs, trains)
    if not smoothed:
        return found
    # Rounding hides small differences: they are looked for without it, too.
    return found.larger(_compared(without_input_quantizers(zeroed), without_input_quantizers(slim), inputs, trains))


def _unrounded(zeroed: nn.Module, slim: nn.Module, inputs: ExampleInputs, trains: str, smoothed: bool) -> Difference:
    """The difference where nothing is rounded to float32 on the way; the plain one if the forward needs that."""
    try:
        with unrounded():
            return _gap64(zeroed, slim, inputs, trains, smoothed)
    except PruningError:
        return _gap64(zeroed, slim, inputs, trains, smoothed)


def _is_double(model: nn.Module) -> bool:
    """Whether a model computes in float64 already, so that the proof's own copy is the result."""
    held = (*model.parameters(), *model.buffers())
    return all(tensor.dtype == torch.float64 for tensor in held if tensor.is_floating_point())


def _check_double(work64: nn.Module, inputs64: ExampleInputs) -> None:
    try:
        with torch.no_grad():
            inputs64.run(work64.eval())
    except Exception as error:
        raise PruningError(
            "that the slimmed model equals the zeroed one is proved in float64, but the model's forward fails there: "
            f"{first_line(error)}; it must take any floating type (a kernel for fewer types can be replaced until then)"
        ) from error


def _demand(error64: Difference, error32: Difference, floats: bool, refusal: str | None) -> None:
    how = f" (the module itself could not be cut: {refusal})" if refusal else ""
    for error, tolerance, kind in (
        (error64.worst, TOLERANCE_64, "float64"),
        (error32.eval_mode if floats else 0.0, TOLERANCE_32, "float32"),
    ):
        if error > tolerance:
            raise PruningError(
                f"slimmed and zeroed model must agree to {tolerance:g} in {kind}, but differ by {error:.3g}{how}", error
            )


def _baked(model: nn.Module, sites: list[QuantSite]) -> nn.Module:
    """A copy with quantized weights as plain parameters."""
    baked, own = copied((model, sites))
    bake_(baked, own)
    return baked


def _fix_bits(sites: Iterable[QuantSite], fixed: Mapping[str, Tensor], config: CompressionConfig) -> None:
    for site in sites:
        bits = fixed.get(site.name)
        if bits is None:
            now = site.quantizer.bits()
            low, high = torch.full_like(now, LOWEST_BITS), torch.full_like(now, HIGHEST_BITS)
            free = config.allowed_bits is None
            bits = now.round() if free else nearest_allowed(now, low, high, config.allowed_bits or ())
        site.quantizer.set_bits_(bits.to(site.quantizer.d).clamp(min=LOWEST_BITS))


def _weights(
    sites: Iterable[QuantSite], keep: Mapping[tuple[str, int], Tensor], prepared: Prepared
) -> dict[str, QuantizedWeight]:
    found = {}
    for site in sites:
        if site.kind != "weight":
            continue
        q, step, bits = site.quantizer, site.quantizer.d.detach(), site.quantizer.bits().round()
        axis = q.channel_axis
        index = keep.get((site.name, axis)) if axis is not None else None
        if axis is not None and index is not None and step.dim() > 0:
            step, bits = (v.index_select(axis, index.to(v.device)) for v in (step, bits))
        found[site.name] = QuantizedWeight(bits.to(torch.int16).cpu(), step.clone())
    return found


def _report(
    prepared: Prepared,
    made: _Made,
    sites: list[QuantSite],
    dead: Tensor,
    weights: Mapping[str, QuantizedWeight],
) -> Report:
    bits = {site.name: float(site.quantizer.bits().round().mean()) for site in sites}
    # Channels that were removed have no bits.
    bits |= {name: float(weight.bits.double().mean()) for name, weight in weights.items()}
    widths = {site.name: site.quantizer.bits() for site in sites if site.kind == "weight"}
    layers = prepared.account.layers(dead, bits, _densities(made.model))
    parameters = prepared.account.parameters(dead)
    full = prepared.account.parameters(prepared.none_dead())
    dense = measurement(prepared.dense, full, prepared.account.dense_bytes())
    return Report(
        measurement=measurement(layers, parameters, prepared.account.stored_bytes(dead, widths)),
        dense=dense,
        groups=prepared.num_prunable,
        removed=int(dead.sum()),
        native=made.refusal is None,
        native_refusal=made.refusal or "",
        train_refusal=made.trains,
        max_error64=made.error64.worst,
        max_error32=made.error32.worst,
        flipped_share=made.flips,
        inexact=made.inexact,
        unquantized=prepared.unquantized,
    )


def _densities(model: nn.Module) -> dict[str, float]:
    """Share of nonzero elements of every parameter by its name."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.numel()}
    return {name: float((parameter != 0).double().mean()) for name, parameter in named.items()}
