"""Packed levels: exact for every mix of widths and shapes, dense to the bit, and refused when they do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geta_core.quantize.packing import CHUNK, pack, packed_bytes, unpack


def drawn(shape: tuple[int, ...], bits: torch.Tensor, seed: int) -> torch.Tensor:
    """Levels over the whole range of every width."""
    top = (2 ** (bits.long() - 1) - 1).expand(shape) if shape else 2 ** (bits.long() - 1) - 1
    share = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((2 * share - 1) * (top + 0.499)).round().long().clamp(-top, top)


def by_hand(levels: torch.Tensor, width: int) -> bytes:
    """The stream as a whole number, written bit by bit: an implementation that shares nothing with the real one."""
    number = 0
    for place, level in enumerate(levels.flatten().tolist()):
        number |= (level + 2 ** (width - 1) - 1) << (place * width)
    return number.to_bytes(-(-levels.numel() * width // 8), "little")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_mix_of_widths_and_shapes_comes_back_exactly(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axis = data.draw(st.integers(-1, len(shape) - 1))
    widths = st.integers(2, 16)
    if axis < 0:
        bits = torch.tensor(data.draw(widths))
    else:
        count = shape[axis]
        own = data.draw(st.lists(widths, min_size=count, max_size=count))
        bits = torch.tensor(own).view([-1 if dim == axis else 1 for dim in range(len(shape))])
    levels = drawn(shape, bits, data.draw(st.integers(0, 1000)))
    packed = pack(levels, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(levels.numel(), bits)
    assert torch.equal(unpack(packed, shape, bits).long(), levels)
    rows = levels.unsqueeze(0) if axis < 0 else levels.movedim(axis, 0)
    flat = bits.flatten()
    expected = b"".join(by_hand(rows[flat == width], width) for width in sorted(set(flat.tolist())))
    assert packed.numpy().tobytes() == expected


@pytest.mark.parametrize("width", [2, 3, 5, 8, 11, 16])
def test_long_tensors_pass_in_chunks(width: int) -> None:
    bits, shape = torch.tensor(width), (2 * CHUNK + 77,)
    levels = drawn(shape, bits, width)
    packed = pack(levels, bits)
    assert packed.numel() == -(-shape[0] * width // 8)
    assert torch.equal(unpack(packed, shape, bits).long(), levels)


def test_levels_beyond_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"levels of 4 bits must lie in \[-7, 7\]"):
        pack(torch.tensor([0, -8]), torch.tensor(4))


def test_a_stream_of_another_length_is_refused_before_anything_is_made() -> None:
    packed = pack(torch.zeros(10, dtype=torch.long), torch.tensor(3))
    with pytest.raises(ValueError, match="4 bytes are not 11 values"):
        unpack(packed, (11,), torch.tensor(3))
    with pytest.raises(ValueError, match="are not 10000000000 values"):
        unpack(packed, (100_000, 100_000), torch.tensor(3))
