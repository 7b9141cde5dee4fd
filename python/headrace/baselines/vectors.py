"""Rows of dense columns and category ids as one sparse vector: dense columns first, the categories behind them.

    onehot   category j with id c is feature dense + offset_j + c, offset_j = sum of the sizes of the columns before
    hashed   it is feature dense + splitmix64(j << 32 | c) mod buckets; ids of a row that fall together add up

(K. Weinberger et al., Feature hashing for large scale multitask learning, 2009, without its signs: a count stays one.)
A vector has as many numbers as the row has columns, whatever its width; only models grow with the width.
Vectors are made in numpy over Arrow batches, by the workers, and read back the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.catalog.fingerprint import splitmix64
from headrace.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

KINDS = ("auto", "onehot", "hashed")
WIDEST_ONEHOT = 1 << 20
"""Features up to which `auto` gives every category its own: some solvers keep tens of numbers a feature."""
BUCKETS, FEW_BUCKETS = 1 << 18, 1 << 10
_SPARSE, _DENSE = 0, 1  # `type` of a vector of MLlib

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Encoding:
    """A plan for every row.

    Args:
        dense: names of the dense columns.
        sizes: by category column, how many ids it has.
        kind: onehot or hashed.
        buckets: of hashed.
    """

    dense: tuple[str, ...]
    sizes: Mapping[str, int]
    kind: str
    buckets: int = 0

    @property
    def width(self) -> int:
        """Features of a vector."""
        return len(self.dense) + (self.buckets if self.kind == "hashed" else sum(self.sizes.values()))

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row must have."""
        return (*self.dense, *self.sizes)

    def categories(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Features of category ids [B, columns], in the order of the columns."""
        if self.kind == "onehot":
            offsets = np.cumsum([0, *self.sizes.values()][:-1], dtype=np.int64)
            return ids + offsets + len(self.dense)
        columns = np.arange(ids.shape[1], dtype=np.uint64) << np.uint64(32)
        hashed = splitmix64(columns | ids.astype(np.uint64))
        return (hashed % np.uint64(self.buckets)).astype(np.int64) + len(self.dense)


@dataclass(frozen=True)
class Csr:
    """Rows as sparse vectors: row i has values[indptr[i]:indptr[i + 1]] at indices rising."""

    indptr: Ints
    indices: Ints
    values: Floats
    width: int


def plan(dense: tuple[str, ...], sizes: Mapping[str, int], kind: str, buckets: int, *, narrow: bool) -> Encoding:
    """The encoding for a table.

    Args:
        dense: its dense columns.
        sizes: ids of its category columns.
        kind: of KINDS; auto is onehot up to WIDEST_ONEHOT features.
        buckets: of hashed; 0: BUCKETS, or FEW_BUCKETS with `narrow`.
        narrow: the model's memory goes by features x bins.

    Raises:
        UserError: an unknown kind, or buckets out of range.
    """
    if kind not in KINDS:
        raise UserError(f"--input.encoding {kind!r} is unknown", f"one of {', '.join(KINDS)}")
    if not 0 <= buckets <= 1 << 30:
        raise UserError(f"--input.buckets {buckets} is out of range", "1 to 1,073,741,824, or 0 for the model's own")
    if kind == "auto":
        kind = "hashed" if narrow or buckets or len(dense) + sum(sizes.values()) > WIDEST_ONEHOT else "onehot"
    if kind == "onehot" and buckets:
        raise UserError("--input.buckets with --input.encoding onehot", "leave one of them out")
    chosen = buckets or (FEW_BUCKETS if narrow else BUCKETS)
    made = Encoding(dense, dict(sizes), kind, chosen if kind == "hashed" else 0)
    if made.width >= 1 << 31:
        raise UserError(f"{made.width:,} features are more than a vector of MLlib has", "--input.encoding hashed")
    return made


def encode_rows(dense: npt.NDArray[Any], ids: npt.NDArray[Any], encoding: Encoding) -> Csr:
    """Dense [B, D] and ids [B, C] as sparse vectors; ids must be within their column's size."""
    rows, num_dense = dense.shape
    found = np.sort(encoding.categories(ids.astype(np.int64)), axis=1)
    first = np.ones(found.shape, bool)
    first[:, 1:] = found[:, 1:] != found[:, :-1]
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, found.size)).astype(np.float64)  # runs end with the row: each begins one
    per_row = first.sum(axis=1)
    indptr = np.concatenate(([0], np.cumsum(per_row + num_dense))).astype(np.int32)
    of_dense = (indptr[:-1, None] + np.arange(num_dense)).ravel()
    behind = np.ones(int(indptr[-1]), bool)
    behind[of_dense] = False
    indices, values = np.empty(len(behind), np.int32), np.empty(len(behind), np.float64)
    indices[of_dense], values[of_dense] = np.tile(np.arange(num_dense), rows), dense.ravel()
    indices[behind], values[behind] = found.ravel()[starts], counts
    return Csr(indptr, indices, values, encoding.width)


def with_vectors(frame: DataFrame, encoding: Encoding, keep: tuple[str, ...], into: str = "features") -> DataFrame:
    """The columns `keep` of a frame, and a vector for each row.

    Args:
        frame: with the encoding's columns, without null in them.
        encoding: see `plan`.
        keep: other columns to keep.
        into: name of the vector's column.
    """
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.types import StructField, StructType

    def encode(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (encode_batch(batch, encoding, keep, into) for batch in batches)

    fields = [frame.schema[name] for name in keep]
    schema = StructType([*fields, StructField(into, VectorUDT(), False)])
    return frame.select(*keep, *encoding.columns).mapInArrow(encode, schema)


def encode_batch(batch: pa.RecordBatch, encoding: Encoding, keep: tuple[str, ...], into: str) -> pa.RecordBatch:
    """One Arrow batch of rows as kept columns and vectors."""
    import pyarrow as pa

    def matrix(names: Iterable[str], dtype: Any) -> npt.NDArray[Any]:
        columns = [batch.column(name).to_numpy(zero_copy_only=False).astype(dtype) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((batch.num_rows, 0), dtype)

    csr = encode_rows(matrix(encoding.dense, np.float64), matrix(encoding.sizes, np.int64), encoding)
    columns = [*(batch.column(name) for name in keep), to_arrow(csr)]
    return pa.RecordBatch.from_arrays(columns, names=[*keep, into])


def to_arrow(csr: Csr) -> pa.StructArray:
    """Sparse vectors as MLlib lays them out: type, size, indices, values."""
    import pyarrow as pa

    rows = len(csr.indptr) - 1
    parts = [
        pa.array(np.full(rows, _SPARSE, np.int8)),
        pa.array(np.full(rows, csr.width, np.int32)),
        pa.ListArray.from_arrays(pa.array(csr.indptr), pa.array(csr.indices)),
        pa.ListArray.from_arrays(pa.array(csr.indptr), pa.array(csr.values)),
    ]
    return pa.StructArray.from_arrays(parts, ["type", "size", "indices", "values"])


@dataclass(frozen=True)
class Entries:
    """What stands in a batch of vectors: for each number its row and feature; for each row its width."""

    rows: npt.NDArray[np.int64]
    features: npt.NDArray[np.int64]
    values: Floats
    widths: npt.NDArray[np.int64]


def entries_of(column: pa.Array) -> Entries:
    """The numbers of a column of vectors, or of lists, without null in it; null inside a list is NaN."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return _of_lists(column)
    kind, size, indices, values = column.flatten()
    lengths, flat = _ragged(values)
    dense = kind.to_numpy(zero_copy_only=False) == _DENSE
    rows = np.repeat(np.arange(len(lengths)), lengths)
    features = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    of_sparse, named = ~dense[rows], _ragged(indices)[1].astype(np.int64)
    if np.count_nonzero(of_sparse) != len(named):
        raise UserError("a vector has more numbers than features named, or fewer", "write the table again")
    features[of_sparse] = named
    widths = np.where(dense, lengths, size.fill_null(0).to_numpy(zero_copy_only=False))
    return Entries(rows, features, flat.astype(np.float64), widths.astype(np.int64))


def _of_lists(column: pa.Array) -> Entries:
    lengths, flat = _ragged(column)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    features = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Entries(rows, features, flat.astype(np.float64), lengths)


def _ragged(lists: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Lengths and numbers of a list array; a null list is empty."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64), lists.flatten().to_numpy(zero_copy_only=False)
