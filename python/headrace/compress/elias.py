"""Elias' recursive (omega) code of whole numbers from 1, as bits from the left.

    code(1) = "0"; code(k) = ... binary(len(binary(k)) - 1) binary(k) "0", each part but the first one told by that
    before it: 2 = 10 0, 3 = 11 0, 4 = 10 100 0, 8 = 11 1000 0, 16 = 10 100 10000 0

Reference: P. Elias, "Universal codeword sets and representations of the integers", IEEE Transactions on Information
Theory 21, 1975.
"""

from __future__ import annotations

import torch
from torch import Tensor


def omega(k: int) -> tuple[int, int]:
    """The code of k, read as a number, and its bits."""
    code, bits = 0, 1
    while k > 1:
        length = k.bit_length()
        code |= k << bits
        bits += length
        k = length - 1
    return code, bits


def omega_tables(most: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """What coding and decoding of 1 to `most` needs.

    Args:
        most: the largest number.
        window: bits that are looked at to decode: as many as the longest code has, at least.

    Returns:
        codes int64 [most + 1] by number; bits int64 [most + 1] of each; and by every value of the next `window` bits,
        int32 [2^window], number + 65536 bits of the code that they begin with: 0 where that is none of these.
    """
    codes, bits = torch.zeros(most + 1, dtype=torch.int64), torch.zeros(most + 1, dtype=torch.int64)
    found = torch.zeros(1 << window, dtype=torch.int32)
    for k in range(1, most + 1):
        code, length = omega(k)
        codes[k], bits[k] = code, length
        first = code << (window - length)
        found[first : first + (1 << (window - length))] = k + (length << 16)
    return codes, bits, found
