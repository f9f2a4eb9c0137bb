"""Whole numbers of 2 to 16 bits, packed without a gap.

A level n of a b-bit grid lies in [-(2^(b-1) - 1), 2^(b-1) - 1]. What is stored is n + 2^(b-1) - 1 in b bits, the lowest
first, values one after the other; the stream ends at a whole byte. Channels of different widths form one stream per
width, the narrowest first, each with its channels in their order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 16
"""Values that are packed at a time; a multiple of 8, so that every chunk ends at a whole byte."""


def stream_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` values of ``bits`` bits."""
    return -(-count * bits // 8)


def packed_bytes(numel: int, bits: Tensor) -> int:
    """Bytes of a packed tensor.

    Args:
        numel: elements of the tensor.
        bits: whole bit widths, one for the tensor or one per channel.
    """
    each = numel // max(bits.numel(), 1)
    widths, counts = torch.unique(bits, return_counts=True)
    return sum(stream_bytes(each * c, b) for b, c in zip(widths.int().tolist(), counts.tolist(), strict=True))


def pack(levels: Tensor, bits: Tensor) -> Tensor:
    """Return the streams of a tensor's levels, uint8 [bytes].

    Args:
        levels: whole numbers of any type.
        bits: bit widths, 0-dim or of the tensor's rank with a size above 1 along the channels' axis alone.

    Raises:
        ValueError: when a level does not fit its width.
    """
    streams = []
    for width, index, rows in _by_width(bits, levels):
        values = rows.index_select(0, index).to(torch.int64).numpy().ravel()
        top = 2 ** (width - 1) - 1
        if values.size and max(-int(values.min()), int(values.max())) > top:
            raise ValueError(f"levels of {width} bits must lie in [-{top}, {top}]")
        streams.append(_stream(values + top, width))
    return torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *streams]))


def unpack(data: Tensor, shape: tuple[int, ...], bits: Tensor) -> Tensor:
    """Undo :func:`pack`; the levels are int16 of the given shape.

    Raises:
        ValueError: when the streams do not have the length that shape and widths ask for.
    """
    count = 1
    for size in shape:
        count *= size
    if packed_bytes(count, bits) != data.numel():
        raise ValueError(f"{data.numel()} bytes are not {count} values of the stated widths")
    levels = torch.empty(shape, dtype=torch.int16)
    source, start = data.numpy(), 0
    for width, index, rows in _by_width(bits, levels):
        each = rows[0].numel() if len(rows) else 0
        length = stream_bytes(each * len(index), width)
        values = _values(source[start : start + length], each * len(index), width)
        start += length
        own = torch.from_numpy((values - (2 ** (width - 1) - 1)).astype(np.int16))
        rows[index] = own.reshape(len(index), *rows.shape[1:])
    return levels


def _by_width(bits: Tensor, levels: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each width with its channels and a view of the levels that has the channels first."""
    axis = next((dim for dim, size in enumerate(bits.shape) if size > 1), None)
    rows = levels.unsqueeze(0) if axis is None else levels.movedim(axis, 0)
    flat = bits.flatten()
    for width in torch.unique(flat).int().tolist():
        yield width, torch.nonzero(flat == width).flatten(), rows


def _stream(values: np.ndarray, width: int) -> np.ndarray:
    places = np.arange(width)
    parts = [
        np.packbits(((values[at : at + CHUNK, None] >> places) & 1).astype(np.uint8), bitorder="little")
        for at in range(0, len(values), CHUNK)
    ]
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def _values(stream: np.ndarray, count: int, width: int) -> np.ndarray:
    weights = 1 << np.arange(width)
    step = CHUNK * width // 8
    parts = []
    for number, at in enumerate(range(0, len(stream), step)):
        here = min(CHUNK, count - number * CHUNK)
        bits = np.unpackbits(stream[at : at + step], bitorder="little")[: here * width]
        parts.append(bits.reshape(here, width).astype(np.int64) @ weights)
    return np.concatenate([np.zeros(0, np.int64), *parts])
