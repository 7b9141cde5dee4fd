"""Packed bits and trits against numbers written out as strings of digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.compress import PayloadError
from headrace.compress.packing import (
    bits_bytes,
    bits_layout,
    pack_bits,
    pack_trits,
    trits_bytes,
    unpack_bits,
    unpack_trits,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def slow_bits(values: list[int], bits: int) -> bytes:
    """Number j of every stretch, as one string of bits, lowest first, cut into bytes."""
    planes, rows = bits_layout(bits)
    m = -(-len(values) // planes)
    padded = values + [0] * (planes * m - len(values))
    data = np.zeros((rows, m), np.uint8)
    for j in range(m):
        text = "".join(format(padded[plane * m + j], f"0{bits}b")[::-1] for plane in range(planes))
        assert len(text) == 8 * rows
        for row in range(rows):
            data[row, j] = int(text[8 * row : 8 * row + 8][::-1], 2)
    return data.tobytes()


def slow_trits(values: list[int]) -> bytes:
    m = -(-len(values) // 5)
    padded = values + [0] * (5 * m - len(values))
    return bytes(int("".join(str(padded[plane * m + j]) for plane in (4, 3, 2, 1, 0)), 3) for j in range(m))


NUMBERS = st.integers(1, 16).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
)


@given(NUMBERS, st.booleans())
def test_bits_are_those_of_the_strings_and_come_back(numbers: tuple[int, list[int]], wide: bool) -> None:
    bits, values = numbers
    given_ = torch.tensor(values, dtype=torch.int32 if wide or bits > 8 else torch.uint8)
    out = torch.full((bits_bytes(len(values), bits),), 170, dtype=torch.uint8)
    pack_bits(given_, bits, out)
    assert out.numpy().tobytes() == slow_bits(values, bits)
    assert unpack_bits(out, bits, len(values)).tolist() == values


@given(st.lists(st.integers(0, 2), min_size=1, max_size=70))
def test_trits_are_those_of_the_strings_and_come_back(values: list[int]) -> None:
    out = torch.full((trits_bytes(len(values)),), 170, dtype=torch.uint8)
    pack_trits(torch.tensor(values, dtype=torch.uint8), out)
    assert out.numpy().tobytes() == slow_trits(values)
    assert unpack_trits(out, len(values)).tolist() == values


def test_every_byte_of_trits() -> None:
    digits = unpack_trits(torch.arange(243).to(torch.uint8), 5 * 243).view(5, 243).numpy()
    np.testing.assert_array_equal(3 ** np.arange(5) @ digits, np.arange(243))
    for byte in range(243, 256):
        with pytest.raises(PayloadError, match=str(byte)):
            unpack_trits(torch.tensor([0, byte], dtype=torch.uint8), 10)


@given(st.integers(1, 16), st.binary(min_size=1, max_size=60), st.integers(1, 80))
def test_any_bytes_are_numbers_in_range(bits: int, data: bytes, n: int) -> None:
    size = bits_bytes(n, bits)
    raw = torch.frombuffer(bytearray((data * size)[:size]), dtype=torch.uint8)
    values = unpack_bits(raw, bits, n)
    assert values.shape == (n,) and int(values.min()) >= 0 and int(values.max()) < 2**bits


def test_bytes_needed() -> None:
    assert [bits_bytes(n, 4) for n in (1, 2, 3)] == [1, 1, 2]
    assert [bits_bytes(n, 3) for n in (1, 8, 9)] == [3, 3, 6]
    assert [bits_bytes(n, 16) for n in (1, 3)] == [2, 6]
    assert [trits_bytes(n) for n in (1, 5, 6)] == [1, 1, 2]
