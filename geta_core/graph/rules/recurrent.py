"""LSTM, GRU and plain recurrent layers: a hidden unit goes with its rows of every gate and what reads its state.

With zero weights, biases and first state a unit stays exactly zero: its candidate is tanh(0) or relu(0), and no gate
can scale nothing to something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from geta_core.graph.capture import where
from geta_core.graph.dependency import Dependencies
from geta_core.graph.labels import Layers, tidy, varying
from geta_core.graph.rules.along import positions
from geta_core.graph.rules.base import Rule, add
from geta_core.graph.sizes import shape_of
from geta_core.graph.zeros import ALWAYS, Zeros

aten = torch.ops.aten

_GATES = {aten.lstm: 4, aten.gru: 3, aten.rnn_tanh: 1, aten.rnn_relu: 1}
Read = Callable[[Any, int], Tensor]
"""Reads one label per index of a dimension of a value, -1 where there is none."""


@dataclass(frozen=True)
class _Cell:
    """The tensors of one layer in one direction."""

    gates: int
    rows: tuple[fx.Node, ...]
    """Input and hidden weights and biases: their first dimension holds all gates of all units."""
    inputs: fx.Node
    hidden: fx.Node
    projection: fx.Node | None

    @property
    def units(self) -> int:
        return shape_of(self.inputs)[0] // self.gates


@dataclass(frozen=True)
class _Call:
    """The arguments of one recurrent operation."""

    x: fx.Node
    states: tuple[fx.Node, ...]
    layers: tuple[tuple[_Cell, ...], ...]
    """The cells of each layer, one per direction."""


def _call(node: fx.Node) -> _Call:
    gates = _GATES[node.target.overloadpacket]  # type: ignore[union-attr]
    x, states, parameters, biased, count, _, _, both = cast(tuple[Any, ...], node.args[:8])
    states = tuple(states) if isinstance(states, (list, tuple)) else (states,)
    directions = 2 if both else 1
    size = len(parameters) // (count * directions)
    cells = []
    for start in range(0, len(parameters), size):
        held = parameters[start : start + size]
        rows = tuple(held[: 4 if biased else 2])
        cells.append(_Cell(gates, rows, held[0], held[1], held[-1] if size % 2 else None))
    layers = tuple(tuple(cells[i * directions : (i + 1) * directions]) for i in range(count))
    return _Call(x, states, layers)


def _along(layers: Layers, dim: int, size: int) -> Tensor:
    """The label of each index of one dimension."""
    for layer in layers:
        if varying(layer) == {dim}:
            return layer.reshape(-1)
    return torch.full((size,), -1)


def _labels(ctx: Dependencies, node: fx.Node) -> list[Layers]:
    call = _call(node)

    def read(value: fx.Node, dim: int) -> Tensor:
        return _along(ctx.layers(value), dim, shape_of(value)[dim])

    def features(value: fx.Node) -> Tensor:
        last = len(shape_of(value)) - 1
        kept = positions(ctx, node, ctx.layers(value), frozenset(range(last)), "is a step of a recurrence")
        return _along(kept, last, shape_of(value)[last])

    entering = features(call.x)
    states = [features(state) for state in call.states]
    hidden, cells = [], []
    for layer in call.layers:
        found = [_tie_cell(ctx, node, cell, entering, read) for cell in layer]
        for out, units in found:
            for state, labels in zip(states, (out, units), strict=False):
                ctx.tie(node, state, labels)
            hidden.append(out)
            cells.append(units)
        entering = torch.cat([out for out, _ in found])
    return _outputs(node, entering, hidden, cells)


def _tie_cell(ctx: Dependencies, node: fx.Node, cell: _Cell, entering: Tensor, read: Read) -> tuple[Tensor, Tensor]:
    """Labels of what a cell puts out and of its units."""
    message = f"is a unit with all its gates, at {where(node)}"
    units: Tensor | None = None
    for value in cell.rows:
        rows = read(value, 0)
        ctx.passed.append(rows[rows >= 0])
        whole = ctx.space.tie_across(rows.view(cell.gates, -1), (0,), message)[0]
        if units is not None:
            ctx.tie(node, whole, units)
        units = whole
    out = units = cast(Tensor, units)
    if cell.projection is not None:
        ctx.tie(node, read(cell.projection, 1), units)
        out = read(cell.projection, 0)
        ctx.passed.append(out[out >= 0])
    ctx.tie(node, read(cell.inputs, 1), entering)
    ctx.tie(node, read(cell.hidden, 1), out)
    return out, units


def _outputs(node: fx.Node, last: Tensor, hidden: Sequence[Tensor], cells: Sequence[Tensor]) -> list[Layers]:
    """Layers of the sequence and of the final states, one row of states per cell."""
    values = node.meta["val"]
    found = [tidy([last.view([1] * (values[0].dim() - 1) + [-1])])]
    for value, parts in zip(values[1:], (hidden, cells), strict=False):
        joined = torch.stack(list(parts))
        found.append(tidy([joined.view(len(parts), *[1] * (value.dim() - 2), -1)]))
    return found


def _zeros(ctx: Zeros, node: fx.Node) -> list[Layers]:
    call, rank = _call(node), len(shape_of(node.args[0]))
    last = frozenset({rank - 1})
    ctx.require_zero(node, [(call.x, ctx.first.operand(call.x, range(rank)))], last)
    states = [_last_zeros(ctx, state) for state in call.states]
    hidden, cells = [], []
    entering = torch.zeros(0, dtype=torch.long)
    for layer in call.layers:
        found = [_zero_cell(ctx, node, cell, states) for cell in layer]
        hidden += [out for out, _ in found]
        cells += [units for _, units in found]
        entering = torch.cat([out for out, _ in found])
    return _outputs(node, entering, hidden, cells)


def _last_zeros(ctx: Zeros, state: fx.Node) -> Tensor:
    size, dim = shape_of(state)[-1], len(shape_of(state)) - 1
    for layer in ctx.zeros(state):
        if not varying(layer) and bool((layer == ALWAYS).all()):
            return torch.full((size,), ALWAYS)
    return _along(ctx.zeros(state), dim, size)


def _zero_cell(ctx: Zeros, node: fx.Node, cell: _Cell, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Which component makes each output and each unit of a cell zero; the others may not be removed."""
    units = _along(ctx.labels(cell.inputs), 0, cell.gates * cell.units)[: cell.units].clone()
    for rows in _gate_rows(ctx, cell):
        units = torch.where(rows == units, units, torch.full_like(units, -1))
    if cell.projection is None:
        out = units = _started(states, units)
    else:
        units = _started(states[1:], units)
        out = _started(states[:1], _along(ctx.zeros(cell.projection), 0, shape_of(cell.projection)[0]))
    for labels, proved in ((_along(ctx.labels(cell.inputs), 0, 0)[: cell.units], units), (_hidden(ctx, cell), out)):
        for index in set(labels[labels >= 0].tolist()) - set(proved.tolist()):
            ctx.reasons.setdefault(index, f"is not exactly zero where it is consumed, at {where(node)}")
    return out, units


def _hidden(ctx: Zeros, cell: _Cell) -> Tensor:
    return _along(ctx.labels(cell.hidden), 1, shape_of(cell.hidden)[1])


def _gate_rows(ctx: Zeros, cell: _Cell) -> Iterator[Tensor]:
    for value in cell.rows:
        yield from _along(ctx.zeros(value), 0, cell.gates * cell.units).view(cell.gates, -1)


def _started(states: Sequence[Tensor], units: Tensor) -> Tensor:
    """Units whose first states are zero as well."""
    for state in states:
        units = torch.where((state == units) | (state == ALWAYS), units, torch.full_like(units, -1))
    return units


def install() -> None:
    """Enter the rules of this file."""
    inputs = [aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]
    add(inputs, Rule(_labels, _zeros))
