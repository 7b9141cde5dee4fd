"""A table's fingerprint: the sum of splitmix64(key) over its rows, modulo 2^64.

    z = key + 0x9E3779B97F4A7C15;  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * 0x94D049BB133111EB;  splitmix64(key) = z ^ z >> 31      (all modulo 2^64)

Reference: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (the mixer is Stafford's
variant 13). A sum does not depend on order, adds up over files and ranks, and, unlike xor, notices a row read twice.
Here once for numpy and once for Spark; tests/golden/splitmix64.json keeps both, and the JVM, to the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

MODULUS = 1 << 64
_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LOW32 = 0xFFFFFFFF
_LOW22 = (1 << 22) - 1
_BLOCK = 1 << 16  # keys mixed at a time: stays in the cache, and bounds the memory


def splitmix64(keys: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Mix int64 or uint64 keys, any shape; the bits of a negative key count as they are."""
    if keys.dtype not in (np.dtype(np.int64), np.dtype(np.uint64)):
        raise TypeError(f"keys must be int64 or uint64, not {keys.dtype}")
    z = keys.astype(np.uint64)
    z += np.uint64(_GAMMA)
    for shift, factor in _ROUNDS:
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def key_sum(keys: npt.NDArray[Any]) -> int:
    """The sum of splitmix64 over the keys, modulo 2^64; 0 for none."""
    flat = keys.reshape(-1)
    total = 0
    for start in range(0, flat.size, _BLOCK):
        total += int(splitmix64(flat[start : start + _BLOCK]).sum(dtype=np.uint64))
    return total % MODULUS


def mixed(df: DataFrame, key: str, into: str) -> DataFrame:
    """Add the bigint column `into` = splitmix64(`key`), in Spark's own expressions, no UDF.

    Spark's ANSI arithmetic refuses to overflow, so products are put together from 32 x 16 bit parts, none over 2^50.
    It is a chain of projections rather than one expression because parts are used several times: as one tree it would
    be copied some thousand times over. Null keys give null. Names starting with `__mix_` are used on the way.
    """
    from pyspark.sql import functions as F

    kept = df.columns
    low = F.col(key).bitwiseAND(F.lit(_LOW32)) + F.lit(_GAMMA & _LOW32)
    df = df.withColumn("__mix_low", low)
    high = F.shiftrightunsigned(F.col(key), 32) + F.lit(_GAMMA >> 32) + F.shiftrightunsigned("__mix_low", 32)
    df = df.withColumn("__mix_z", _join(high, F.col("__mix_low")))
    for shift, factor in _ROUNDS:
        df = _times(_xor_shift(df, shift), factor)
    df = _xor_shift(df, 31)
    return df.select(*[F.col(f"`{name}`") for name in kept if name != into], F.col("__mix_z").alias(into))


def sum_columns(mixed_column: str) -> list[Column]:
    """Aggregates fp_0, fp_1, fp_2, which `combine` makes into the sum: thirds of 22 bits, exact up to 2^41 rows."""
    from pyspark.sql import functions as F

    parts = [F.shiftrightunsigned(mixed_column, shift).bitwiseAND(F.lit(_LOW22)) for shift in (0, 22, 44)]
    return [F.sum(part).alias(f"fp_{index}") for index, part in enumerate(parts)]


def combine(*parts: int | None) -> int:
    """Put the sums of the three thirds together, modulo 2^64; None is the sum of no rows."""
    return sum((part or 0) << (22 * index) for index, part in enumerate(parts)) % MODULUS


def _xor_shift(df: DataFrame, shift: int) -> DataFrame:
    from pyspark.sql import functions as F

    return df.withColumn("__mix_z", F.col("__mix_z").bitwiseXOR(F.shiftrightunsigned("__mix_z", shift)))


def _times(df: DataFrame, factor: int) -> DataFrame:
    """__mix_z *= factor modulo 2^64: the schoolbook product of two 32-bit digits by four 16-bit digits."""
    from pyspark.sql import functions as F

    b0, b1, b2, b3 = (F.lit((factor >> shift) & 0xFFFF) for shift in (0, 16, 32, 48))
    df = df.withColumn("__mix_a0", F.col("__mix_z").bitwiseAND(F.lit(_LOW32)))
    df = df.withColumn("__mix_a1", F.shiftrightunsigned("__mix_z", 32))
    df = df.withColumn("__mix_p", F.col("__mix_a0") * b1)
    a0, a1, p = F.col("__mix_a0"), F.col("__mix_a1"), F.col("__mix_p")
    df = df.withColumn("__mix_t", a0 * b0 + F.shiftleft(p.bitwiseAND(F.lit(_LOW32)), 16))
    carry = F.shiftrightunsigned("__mix_t", 32) + F.shiftleft(F.shiftrightunsigned(p, 32), 16)
    high = carry + a0 * b2 + _upper16(a0 * b3) + a1 * b0 + _upper16(a1 * b1)
    return df.withColumn("__mix_z", _join(high, F.col("__mix_t")))


def _upper16(product: Column) -> Column:
    """What a product shifted by 16 bits adds to a 32-bit digit."""
    from pyspark.sql import functions as F

    return F.shiftleft(product.bitwiseAND(F.lit(0xFFFF)), 16)


def _join(high: Column, low: Column) -> Column:
    from pyspark.sql import functions as F

    return F.shiftleft(high.bitwiseAND(F.lit(_LOW32)), 32).bitwiseOR(low.bitwiseAND(F.lit(_LOW32)))
