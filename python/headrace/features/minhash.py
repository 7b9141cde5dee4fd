"""MinHash signatures and LSH bands: which documents are worth comparing.

    h_i(x) = a_i x + b_i mod 2^64, a_i odd (a permutation of the 64-bit numbers)
    signature_i(S) = min over x in S of h_i(x)
    bucket_k(S) = a 64-bit mix of k and signature_{kr} ... signature_{kr+r-1}         (band k of r rows)
    P[signature_i(A) = signature_i(B)] = J(A, B) = s;   P[A and B share a bucket] = 1 - (1 - s^r)^b

With b = 14 bands of r = 8 rows (FineWeb's choice) a pair of Jaccard 0.8 meets with probability 0.924, one of 0.5 with
0.053. References: Broder 1997; Indyk, Motwani, "Approximate nearest neighbors", STOC 1998; Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, ch. 3.

Shingles are uniform 64-bit numbers already, so that linear maps modulo 2^64 order them as well as a family modulo a
prime does (a test compares the estimator's mean and spread with the binomial's), at a third of its cost. Coefficients
are splitmix64 of the seed and their place. A wrong meeting in a bucket costs one comparison, never a document.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError
from headrace.features.shingles import VERSION, Int64s, Shingles, UInt64s, shingles, text_hashes, words

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 14  # shingles permuted at a time: two blocks stay in the cache
_SLICE_BYTES = 4 << 20
SIGNED_SCHEMA = "key bigint, text_high bigint, text_low bigint, shingles int, buckets array<bigint>"


@dataclass(frozen=True)
class MinHash:
    """How documents are cut and signed; whatever differs here cannot be compared.

    Args:
        ngram: words in a shingle.
        bands: bands of the signature.
        rows: rows in a band.
        seed: of the permutations.
        fold_digits: digits count as equal.
    """

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 0
    fold_digits: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: a setting out of range.
        """
        for name, most in (("ngram", 100), ("bands", 1000), ("rows", 1000)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"minhash.{name} is {getattr(self, name)}", f"give a number from 1 to {most}")

    def to_json(self) -> dict[str, Any]:
        """What is kept with bands, so that others are not compared with them."""
        return {**asdict(self), "version": VERSION}

    def meeting(self, jaccard: float) -> float:
        """Probability that two documents of this Jaccard share a bucket."""
        return float(1 - (1 - jaccard**self.rows) ** self.bands)

    def coefficients(self) -> tuple[UInt64s, UInt64s]:
        """a (odd) and b of every permutation, uint64 [bands * rows] each."""
        number = np.arange(2 * self.bands * self.rows, dtype=np.uint64)
        start = splitmix64(np.array([self.seed & (2**64 - 1)], np.uint64))
        drawn = splitmix64(number + start)
        return drawn[::2] | np.uint64(1), drawn[1::2]


def signatures(found: Shingles, minhash: MinHash) -> UInt64s:
    """MinHash signatures.

    Args:
        found: shingles of N texts.
        minhash: see MinHash.

    Returns:
        uint64 [N, bands * rows]; a text without shingles has 2^64 - 1 throughout.
    """
    a, b = minhash.coefficients()
    sizes = np.diff(found.places)
    full = np.flatnonzero(sizes)
    result = np.full((sizes.size, a.size), np.iinfo(np.uint64).max, np.uint64)
    starts = found.places[full]
    for first, last in _blocks(sizes[full]):
        low, high = int(starts[first]), int(starts[last - 1] + sizes[full[last - 1]])
        result[full[first:last]] = _least(found.hashes[low:high], starts[first:last] - low, a, b)
    return result


def _blocks(sizes: Int64s) -> Iterator[tuple[int, int]]:
    """Runs of texts with about _BLOCK shingles together, at least one text each."""
    ends = np.cumsum(sizes)
    first = 0
    while first < sizes.size:
        before = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, before + _BLOCK, side="right")))
        yield first, last
        first = last


def _least(hashes: UInt64s, starts: Int64s, a: UInt64s, b: UInt64s) -> UInt64s:
    """Least value of each text under every permutation, [texts, permutations]."""
    result = np.empty((a.size, starts.size), np.uint64)
    moved = np.empty_like(hashes)
    for i in range(a.size):
        np.multiply(hashes, a[i], out=moved)
        moved += b[i]
        np.minimum.reduceat(moved, starts, out=result[i])
    return result.T


def buckets(signed: UInt64s, minhash: MinHash) -> Int64s:
    """The bucket of every band, int64 [N, bands]; the band's number is part of what is mixed."""
    rows = signed.reshape(signed.shape[0], minhash.bands, minhash.rows)
    mixed = np.broadcast_to(np.arange(minhash.bands, dtype=np.uint64), rows.shape[:2])
    for row in range(minhash.rows):
        mixed = splitmix64(mixed ^ rows[:, :, row])
    return mixed.astype(np.uint64).view(np.int64)


def signer(minhash: MinHash) -> Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]]:
    """What `mapInArrow` takes: key and text in, SIGNED_SCHEMA out, a row a document in the same order.

    `shingles` counts the n-grams with repetitions; `buckets` is null where there are none.
    """
    return lambda batches: (signed(part, minhash) for batch in batches for part in slices(batch))


def signed(batch: pa.RecordBatch, minhash: MinHash) -> pa.RecordBatch:
    """One batch of key, text signed."""
    import pyarrow as pa

    found = words(batch.column(1), minhash.fold_digits)
    cut = shingles(found, minhash.ngram)
    sizes = np.diff(cut.places)
    values = buckets(signatures(cut, minhash)[sizes > 0], minhash)
    offsets = np.concatenate([[0], np.cumsum(np.where(sizes > 0, minhash.bands, 0))])
    # Arrow takes a null offset for a null list.
    offset_array = pa.array(offsets, pa.int32(), mask=np.append(sizes == 0, False))
    hashes = text_hashes(found)
    columns = [batch.column(0), pa.array(hashes[:, 0]), pa.array(hashes[:, 1]), pa.array(sizes, pa.int32())]
    columns.append(pa.ListArray.from_arrays(offset_array, pa.array(values.reshape(-1))))
    return pa.RecordBatch.from_arrays(columns, ["key", "text_high", "text_low", "shingles", "buckets"])


def slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch of key, text in parts of about 4 MB of text: memory follows that, not Spark's rows a batch."""
    import pyarrow.compute as pc

    sizes = pc.fill_null(pc.binary_length(batch.column(1)), 0).to_numpy(zero_copy_only=False)
    part = np.cumsum(sizes) // _SLICE_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), batch.num_rows]
    for first, last in itertools.pairwise(cuts):
        if last > first:
            yield batch.slice(first, last - first)
