"""bronze/edges read by tasks from its data files: Arrow columns become numpy arrays, no edge goes through Spark.

A task reads row groups of one file, a chunk at a time; of the four columns that name an edge's type it takes the codes
of their dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.catalog import storage
from headrace.catalog.log import DataFile
from headrace.features.graph_exchange import over

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TYPE = ("source_type", "relation", "target_type", "split")
CHUNK_EDGES = 1 << 20
_UNIT_BYTES = 64 << 20  # of a file, to a task
_COLUMN = {"place": "key"}
_TALLY = ("edges", "loops", "weighted", "src", "dst")
Unit = tuple[str, int, int]
"""A file, and which of how many shares of its row groups."""
EdgeArrays = Iterator[tuple[int, list[Any]]]
"""Edges as a task gets them, a chunk at a time: the edge type's number, the columns asked for."""
Act = Callable[[EdgeArrays], Iterator[pa.RecordBatch]]
"""What a task makes of its edges."""


@dataclass(frozen=True)
class EdgeFiles:
    """The edges of a graph where they lie.

    Args:
        spark: the session.
        units: what tasks read, one each.
        numbers: of the edge types, by the names in TYPE.
    """

    spark: SparkSession = field(repr=False)
    units: tuple[Unit, ...]
    numbers: Mapping[tuple[str, ...], int]

    def each(self, columns: Sequence[str], act: Act, ddl: str) -> DataFrame:
        """What `act` makes of the edges of each task, in batches of `ddl`."""
        numbers = self.numbers

        def run(unit: Unit) -> Iterator[pa.RecordBatch]:
            return act((numbers[names], arrays) for names, arrays in typed(unit, columns))

        return over(self.spark, self.units, run, ddl)


def units_of(files: Iterable[DataFile]) -> tuple[Unit, ...]:
    """What tasks read: a file, or a share of the row groups of a large one."""
    shares = [(file.path, max(1, -(-file.size // _UNIT_BYTES))) for file in files]
    return tuple((path, share, of) for path, of in shares for share in range(of))


def tally(spark: SparkSession, units: tuple[Unit, ...]) -> DataFrame:
    """Edges, self-loops, edges with weights, largest source and target of the types in TYPE, several rows a type."""

    def run(unit: Unit) -> Iterator[pa.RecordBatch]:
        rows = [(*names, *_counts(names, *arrays)) for names, arrays in typed(unit, ("src", "dst", "weight"))]
        if rows:
            columns = [pa.array(values) for values in zip(*rows, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, [*TYPE, *_TALLY])

    return over(spark, units, run, ", ".join([*(f"{n} string" for n in TYPE), *(f"{n} bigint" for n in _TALLY)]))


def _counts(names: tuple[str, ...], src: Any, dst: Any, weight: Any) -> tuple[int, ...]:
    loops = int((src == dst).sum()) if names[0] == names[2] else 0
    return len(src), loops, int((~np.isnan(weight)).sum()), int(src.max()), int(dst.max())


def typed(unit: Unit, columns: Sequence[str]) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The columns of a unit's edges, a type and at most CHUNK_EDGES at a time, in the order of the file.

    A weight that is null is NaN; one that is not finite never comes into the table.
    """
    for batch in _read(unit, [_COLUMN.get(name, name) for name in columns]):
        arrays = [batch.column(_COLUMN.get(name, name)).to_numpy(zero_copy_only=False) for name in columns]
        types = [batch.column(name) for name in TYPE]
        shape = [len(column.dictionary) for column in types]
        codes = np.ravel_multi_index([column.indices.to_numpy() for column in types], shape)
        for code, places in groups(codes):
            at = np.unravel_index(code, shape)
            names = tuple(c.dictionary[int(i)].as_py() for c, i in zip(types, at, strict=True))
            yield names, arrays if places is None else [array[places] for array in arrays]


def _read(unit: Unit, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    path, share, of = unit
    store, _ = storage.locate(path)
    with store.open(path) as stream:
        reader = pq.ParquetFile(stream, read_dictionary=list(TYPE))
        mine = list(range(share, reader.num_row_groups, of))
        if mine:
            yield from reader.iter_batches(CHUNK_EDGES, mine, [*TYPE, *columns], use_threads=False)


def groups(codes: npt.NDArray[np.integer[Any]]) -> Iterator[tuple[int, npt.NDArray[np.int64] | None]]:
    """The numbers that occur and where they stand, ascending; None for everywhere."""
    if len(codes) and (codes == codes[0]).all():
        yield int(codes[0]), None
        return
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]) if len(found) else [], strict=True)
