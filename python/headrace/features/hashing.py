"""Stable hashes of 64-bit integers: XXH64 in numpy equal to Spark's `xxhash64`, and exact placement of rows.

    XXH64 of 8 bytes x with seed s:  h = s + P5 + 8;  h ^= rotl(x P2, 31) P1;  h = rotl(h, 27) P1 + P4;
                                     h ^= h >> 33;  h *= P2;  h ^= h >> 29;  h *= P3;  h ^= h >> 32

Reference: Y. Collet, xxHash specification (XXH64, inputs of 8 bytes); Spark chains columns by taking the hash of one as
the seed of the next, and starts from 42. The ids of hashed columns and the order of training rows rest on it, so it
never changes; `tests/golden/xxhash64_long.json` pins it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

Int64s = npt.NDArray[np.int64]
SPARK_SEED = 42
_P1, _P2, _P3, _P4, _P5 = (
    np.uint64(prime)
    for prime in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
)
_MASK = (1 << 64) - 1


def xxhash64(values: npt.ArrayLike, seed: int = SPARK_SEED) -> Int64s:
    """XXH64 of each value's 8 little-endian bytes.

    Args:
        values: int64, any shape.
        seed: taken modulo 2^64.

    Returns:
        int64 of the same shape, equal to Spark's `xxhash64(CAST(x AS BIGINT))` for the default seed.
    """
    x = np.atleast_1d(np.asarray(values, dtype=np.int64)).view(np.uint64)
    start = np.uint64((seed + int(_P5) + 8) & _MASK)
    h = start ^ (_rotl(x * _P2, 31) * _P1)
    h = _rotl(h, 27) * _P1 + _P4
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    h = h ^ (h >> np.uint64(32))
    return h.view(np.int64).reshape(np.shape(values))


def order_hash(keys: npt.ArrayLike, seed: int) -> Int64s:
    """The number training rows are sorted by: `xxhash64(seed, key)` of Spark SQL."""
    return xxhash64(keys, int(xxhash64(np.int64(seed))))


def order_column(key: Column, seed: int) -> Column:
    """`order_hash` as a Spark expression."""
    from pyspark.sql import functions as F

    return F.xxhash64(F.lit(seed).cast("bigint"), key)


def bucket_of(values: npt.ArrayLike, size: int) -> Int64s:
    """Hash each value into 0 .. size-1 (the remainder is never negative)."""
    return np.mod(xxhash64(values), np.int64(size))


def bucket_column(value: Column, size: int) -> Column:
    """`bucket_of` as a Spark expression; null stays null."""
    from pyspark.sql import functions as F

    return F.when(value.isNotNull(), F.pmod(F.xxhash64(value.cast("bigint")), F.lit(size).cast("bigint")))


def slice_of(hashes: Int64s, num_slices: int) -> Int64s:
    """Cut the line of signed 64-bit hashes into equal ranges: which of 0 .. num_slices-1 each falls into.

    Ascending hashes give ascending slices, so sorting within slices sorts the whole.

    Args:
        hashes: int64 [N].
        num_slices: at most 2^31.
    """
    unsigned = hashes.view(np.uint64) ^ np.uint64(1 << 63)
    return (((unsigned >> np.uint64(32)) * np.uint64(num_slices)) >> np.uint64(32)).astype(np.int64)


def slice_column(hashed: Column, num_slices: Column) -> Column:
    """`slice_of` as a Spark expression; the number of slices may differ from row to row."""
    from pyspark.sql import functions as F

    unsigned_high = F.shiftrightunsigned(hashed.bitwiseXOR(F.lit(-(1 << 63))), 32)
    return F.shiftright(unsigned_high * num_slices, 32).cast("int")


def places(num_partitions: int) -> npt.NDArray[np.int32]:
    """For each partition number a value that Spark's hash partitioning puts there.

    `repartition(n, column)` sends a row to `pmod(murmur3(column), n)`. Rows that carry `places(n)[b]` land in partition
    b, so we choose the partition of every row exactly; range partitioning would cut by a sample instead, whose cuts
    depend on the number of cores.

    Returns:
        int32 [num_partitions].
    """
    found = np.zeros(num_partitions, np.int32)
    missing, start = num_partitions, 0
    seen = np.zeros(num_partitions, bool)
    while missing:
        candidates = np.arange(start, start + 8 * num_partitions + 64, dtype=np.int32)
        partitions, first = np.unique(np.mod(murmur3(candidates), num_partitions), return_index=True)
        new = ~seen[partitions]
        found[partitions[new]], seen[partitions[new]] = candidates[first[new]], True
        missing, start = num_partitions - int(seen.sum()), start + len(candidates)
    return found


def murmur3(values: npt.NDArray[np.int32], seed: int = SPARK_SEED) -> npt.NDArray[np.int64]:
    """Murmur3 x86 32-bit of each int's 4 bytes, as Spark's `hash(CAST(x AS INT))`; signed, widened to int64 [N]."""
    k = values.view(np.uint32) * np.uint32(0xCC9E2D51)
    k = _rotl32(k, 15) * np.uint32(0x1B873593)
    h = _rotl32(np.uint32(seed) ^ k, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    h = h ^ np.uint32(4)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h = h ^ (h >> np.uint32(16))
    return h.view(np.int32).astype(np.int64)


def place(frame: DataFrame, column: str, num_partitions: int) -> DataFrame:
    """Move rows to the partition whose `places` value they carry in `column`."""
    return frame.repartition(num_partitions, column)


def _rotl(x: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _rotl32(x: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    return (x << np.uint32(bits)) | (x >> np.uint32(32 - bits))
