"""QASSO with plain SGD as the paper states it, layer by layer, in Python floats; shares no code with geta_core.qasso.

Source: arXiv:2502.16638. Gradients come from autograd on a twin of the model; all the rest is lists and ``math``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from tests.geta_core.qasso.toy import Toy, backward, original

Vector = list[float]


@dataclass
class Grid:
    """One quantizer."""

    d: float
    q_m: float
    t: float | None
    signed: bool
    low: int
    high: int
    numel: int

    def top(self) -> float:
        return self.q_m if self.t is None else self.q_m**self.t

    def step_at(self, bits: float) -> float:
        return self.top() / (2 ** (bits - 1 if self.signed else bits) - 1)

    def bits(self) -> float:
        return math.log2(self.top() / self.d + 1) + (1 if self.signed else 0)


@dataclass
class Layer:
    """A linear layer: rows of its weight, bias, weight quantizer, and the numbers of the rows' groups (or none)."""

    rows: list[Vector]
    bias: Vector
    grid: Grid
    groups: list[int] = field(default_factory=list)


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def clip(x: float, grid: Grid) -> float:
    power = 1.0 if grid.t is None else grid.t
    return math.copysign(min(abs(x), grid.q_m) ** power, x) if x else 0.0


def residual(c: float, d: float) -> float:
    return math.copysign(1.0, c) * (round(abs(c) / d) - abs(c) / d)


class Reference:
    """Runs the same steps as the optimizer under test on a twin model."""

    def __init__(
        self, twin: Toy, lengths: tuple[int, int, int, int], periods: tuple[int, int], lrs: tuple[float, float]
    ):
        self.twin, self.lengths, (self.B, self.P), (self.lr, self.lr_quant) = twin, lengths, periods, lrs
        self.eta, self.zeta = 0.999, 0.9
        self.step_number = 0
        self.cases: set[tuple[bool, bool]] = set()
        self.loops = 0
        config = twin.config
        assert config.weight_bits is not None
        self.layers, self.inputs, first = [], [], 0
        for name in ("0", "2", "4"):
            module = twin.model.get_submodule(name)
            weight, bias = original(module), module.bias
            assert isinstance(bias, nn.Parameter)
            grid = self._grid(module.parametrizations["weight"][0], config.weight_bits, weight.numel())  # type: ignore[index]
            groups = [] if name == "4" else list(range(first, first + len(bias)))
            first += len(groups)
            self.layers.append(Layer(weight.tolist(), bias.tolist(), grid, groups))
            if config.activation_bits:
                self.inputs.append(self._grid(module.input_quantizer, config.activation_bits, weight.shape[1]))
        self.num_groups, self.initial = first, config.initial_bits
        self.pruned: set[int] = set()
        self.redundant: set[int] = set()
        self.target = int(config.sparsity * first)

    @staticmethod
    def _grid(quantizer: nn.Module, bits: tuple[int, int], numel: int) -> Grid:
        d, q_m, t = (None if p is None else p.item() for p in (quantizer.d, quantizer.q_m, quantizer.t))
        assert d is not None and q_m is not None
        return Grid(d, q_m, t, bool(quantizer.signed), *bits, numel)

    def _quantizers(self) -> list[tuple[Grid, nn.Module]]:
        pairs = []
        for position, name in enumerate(("0", "2", "4")):
            module = self.twin.model.get_submodule(name)
            pairs.append((self.layers[position].grid, module.parametrizations["weight"][0]))  # type: ignore[index]
            if self.inputs:
                pairs.append((self.inputs[position], module.input_quantizer))
        return pairs  # type: ignore[return-value]

    def _load(self) -> None:
        for layer, name in zip(self.layers, ("0", "2", "4"), strict=True):
            module = self.twin.model.get_submodule(name)
            weight, bias = original(module), module.bias
            weight.data.copy_(weight.new_tensor(layer.rows))
            bias.data.copy_(weight.new_tensor(layer.bias))  # type: ignore[union-attr, operator]
        for grid, quantizer in self._quantizers():
            for attribute in ("d", "q_m", "t"):
                if getattr(grid, attribute) is not None:
                    getattr(quantizer, attribute).data.fill_(getattr(grid, attribute))
        self.twin.model.zero_grad()

    def step(self) -> None:
        self._load()
        backward(self.twin, self.step_number)
        warmup, projection, joint, _ = self.lengths
        at = self.step_number
        old = [(layer.rows, layer.bias, Grid(**vars(layer.grid))) for layer in self.layers]
        grads = self._descend()
        if at == warmup + projection + joint:
            self.whole = [round(grid.bits()) for grid in self._before]
        if at < warmup:
            self._project([(2, self.initial)] * 99)
        elif at < warmup + projection:
            # The bound falls by b_r after each of the first B - 1 periods.
            done = (at - warmup) // (projection // self.B)
            grids = [grid for grid, _ in self._quantizers()]
            self._project([(g.low, self.initial - done * (self.initial - g.high) / (self.B - 1)) for g in grids])
        elif at < warmup + projection + joint:
            self._joint(at - warmup - projection, joint // self.P, old, grads)
        else:
            for (grid, _), bits in zip(self._quantizers(), self.whole, strict=True):
                grid.d = grid.step_at(min(max(bits, grid.low), grid.high))
            self._zero()
        self.step_number += 1

    def _descend(self) -> list[tuple[list[Vector], Vector]]:
        """Plain SGD on everything; the gradient of d is scaled as LSQ does."""
        grads = []
        for layer, name in zip(self.layers, ("0", "2", "4"), strict=True):
            module = self.twin.model.get_submodule(name)
            g_rows, g_bias = original(module).grad.tolist(), module.bias.grad.tolist()  # type: ignore[union-attr]
            grads.append((g_rows, g_bias))
            layer.rows = [
                [x - self.lr * g for x, g in zip(row, g_row, strict=True)]
                for row, g_row in zip(layer.rows, g_rows, strict=True)
            ]
            layer.bias = [x - self.lr * g for x, g in zip(layer.bias, g_bias, strict=True)]
        self._before = [Grid(**vars(grid)) for grid, _ in self._quantizers()]
        for grid, quantizer in self._quantizers():
            scale = 1 / math.sqrt(grid.numel * grid.top() / grid.d)
            grid.d -= self.lr_quant * scale * float(quantizer.d.grad)  # type: ignore[arg-type, union-attr]
            grid.q_m -= self.lr_quant * float(quantizer.q_m.grad)  # type: ignore[arg-type, union-attr]
            if grid.t is not None:
                grid.t -= self.lr_quant * float(quantizer.t.grad)  # type: ignore[arg-type, union-attr]
        return grads

    def _project(self, ranges: list[tuple[float, float]]) -> None:
        for (grid, _), (low, high) in zip(self._quantizers(), ranges, strict=False):
            grid.d = min(max(grid.d, grid.step_at(high)), grid.step_at(low))

    def _joint(self, at: int, length: int, old: list, grads: list) -> None:  # type: ignore[type-arg]
        period, t = divmod(at, length)
        if t == 0:
            self._choose(period, old, grads)
        self._project([(grid.low, grid.high) for grid, _ in self._quantizers()])
        for layer, (rows, bias, grid), (g_rows, g_bias) in zip(self.layers, old, grads, strict=True):
            own = [index for index, group in enumerate(layer.groups) if group in self.redundant]
            if not own:
                continue
            x = [value for index in own for value in rows[index]]
            g = [value for index in own for value in g_rows[index]]
            c = [clip(value, grid) for value in x]
            r = [residual(value, grid.d) for value in c]
            gamma, layer.grid.d = self._rules(c, r, g, layer.grid, 1 - (length - t - 1) / (length - t))
            x_q = iter([c_i + grid.d * r_i for c_i, r_i in zip(c, r, strict=True)])
            for index in own:
                layer.rows[index] = [value - gamma * next(x_q) for value in layer.rows[index]]
            b, g_b = [bias[index] for index in own], [g_bias[index] for index in own]
            gamma, _ = self._rules(b, [0.0] * len(b), g_b, None, 1 - (length - t - 1) / (length - t))
            for index, value in zip(own, b, strict=True):
                layer.bias[index] -= gamma * value
        if t == length - 1:
            self.pruned |= self.redundant
            self.redundant = set()
        self._zero()

    def _rules(self, c: Vector, r: Vector, g: Vector, grid: Grid | None, uniform: float) -> tuple[float, float]:
        norm_c, norm_r, norm_g = (math.sqrt(dot(v, v)) for v in (c, r, g))
        if norm_c == 0:
            gamma = 0.0
        elif (cos_gamma := dot(c, g) / (norm_c * norm_g)) >= 0:
            gamma = uniform
        else:
            gamma = -(1 - self.eta) * self.lr * norm_g / (cos_gamma * norm_c)
        assert gamma <= 1, "the cap on gamma, which the paper does not state, must not act in this comparison"
        if grid is None:
            return gamma, 0.0
        d_max, d_min = grid.step_at(grid.low), grid.step_at(grid.high)
        cos_d = dot(r, g) / (norm_r * norm_g) if norm_r else 0.0
        if gamma > 0:
            self.cases.add((dot(c, g) >= 0, cos_d >= 0))
        if gamma == 0 or cos_d >= 0:
            return gamma, d_max
        d = -self.zeta * self.eta * self.lr * norm_g / (gamma * cos_d * norm_r)
        while d < d_min:
            gamma, d, self.loops = gamma * 0.8, d / 0.8, self.loops + 1
        return gamma, min(d, d_max)

    def _choose(self, period: int, old: list, grads: list) -> None:  # type: ignore[type-arg]
        scores: list[Vector] = []
        for group in range(self.num_groups):
            x: Vector = []
            g: Vector = []
            for layer, (rows, bias, _), (g_rows, g_bias) in zip(self.layers, old, grads, strict=True):
                if group in layer.groups:
                    index = layer.groups.index(group)
                    x += [*rows[index], bias[index]]
                    g += [*g_rows[index], g_bias[index]]
            xx, gg, xg = math.sqrt(dot(x, x)), self.lr * math.sqrt(dot(g, g)), self.lr * dot(x, g)
            cosine = xg / (xx * gg) if xx * gg else 0.0
            scores.append([xx, xx / len(x), cosine + 1, abs(xg), 0.5 * xg * xg])
        left = [group for group in range(self.num_groups) if group not in self.pruned]
        norms = [math.sqrt(math.fsum(scores[group][k] ** 2 for group in left)) for k in range(5)]
        total = {group: math.fsum(0.2 * scores[group][k] / norms[k] for k in range(5)) for group in left}
        count = self.target // self.P
        if period == self.P - 1:
            count = self.target - len(self.pruned)
        self.redundant = set(sorted(left, key=total.__getitem__)[:count])

    def _zero(self) -> None:
        for layer in self.layers:
            for index, group in enumerate(layer.groups):
                if group in self.pruned:
                    layer.rows[index] = [0.0] * len(layer.rows[index])
                    layer.bias[index] = 0.0
