"""The quantizer written from the paper's formulas in NumPy float64, elementwise and without autograd."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Gradients(NamedTuple):
    """Elementwise derivatives of x^Q; those of the parameters are still to be multiplied by g and summed."""

    x: Array
    d: Array
    q_m: Array
    t: Array


def forward(x: Array, d: Array, q_m: Array, t: Array, signed: bool) -> Array:
    inside = x if signed else np.maximum(x, 0.0)
    sign = np.sign(inside)
    powered = np.where(np.abs(inside) <= q_m, np.abs(inside) ** t, q_m**t)
    return d * np.round(sign * powered / d)


def gradients(x: Array, d: Array, q_m: Array, t: Array, signed: bool) -> Gradients:
    inside = x if signed else np.maximum(x, 0.0)
    sign = np.sign(inside)
    size = np.abs(inside)
    low = size <= q_m
    powered = np.where(low, size**t, q_m**t)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(size > 0, np.where(low, size**t * np.log(size), q_m**t * np.log(q_m)), 0.0)
    passes = (np.abs(x) <= q_m) if signed else (x >= 0) & (x <= q_m)
    return Gradients(
        x=passes.astype(np.float64),
        d=sign * (np.round(powered / d) - powered / d),
        q_m=np.where(low, 0.0, sign * t * q_m ** (t - 1)),
        t=sign * slope,
    )


def bits(d: Array, q_m: Array, t: Array, signed: bool) -> Array:
    return np.log2(q_m**t / d + 1) + (1 if signed else 0)
