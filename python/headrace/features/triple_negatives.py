"""Negative triples as rows: drawn by tasks, each from its shards, by what all must know put down once.

What all must know is counted on the driver: the known triples (8 bytes each, in every worker too), how often a relation
replaces the head, the distribution of the entities. With sides and entities uniform and nothing filtered it is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.catalog import storage
from headrace.errors import UserError
from headrace.features.graph_triples import TripleTables
from headrace.features.negatives import Known, Negatives, Options, Triples
from headrace.features.neighbourhoods import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

TABLE = "gold/graph_negatives"
MAX_TRIPLES = 100_000_000
"""That are counted at once: 2.4 GB on the driver, some 4 while they are counted; 0.8 GB in a worker."""
DDL = "key bigint, split int, head bigint, relation bigint, tail bigint, side array<bigint>, negative array<bigint>"
HEAD, TAIL = 0, 1
_BATCH_NEGATIVES = 1 << 17


@dataclass(frozen=True)
class Prepared:
    """What a worker draws by; the large arrays lie in files.

    Args:
        options: see Options.
        head_share: float64 [relations].
        cumulative: file of the entities' distribution, or empty.
        known: file of the known triples' keys, or empty.
    """

    options: Options
    head_share: npt.NDArray[np.float64]
    cumulative: str
    known: str

    def negatives(self) -> Negatives:
        """Read the files, once a worker process."""
        cumulative = _loaded(self.cumulative) if self.cumulative else None
        known = Known.of_keys(_loaded(self.known), self.options) if self.known else None
        return Negatives(self.options, self.head_share, cumulative, known)


def prepare(tables: TripleTables, known: TripleTables, options: Options, work: str) -> Prepared:
    """Count what all tasks must know.

    Args:
        tables: the triples that sides and degrees are counted over.
        known: triples not to draw, where `options.filtered`.
        options: see Options.
        work: an empty place that all executors can read.

    Raises:
        UserError: settings that make no sense, or too many triples to be counted at once.
    """
    options.check()
    counted = options.sides == "bernoulli" or options.entities == "degree"
    most = max(tables.count if counted else 0, known.count if options.filtered else 0)
    if most > MAX_TRIPLES:
        problem = f"{most:,} triples are more than the {MAX_TRIPLES:,} that bernoulli, degree and filtered can count"
        raise UserError(problem, "--sides uniform --entities uniform --filtered false")
    empty = Triples(*[np.empty(0, np.int64)] * 3)
    made = Negatives.of(tables.whole() if counted else empty, replace(options, filtered=False))
    cumulative = "" if made.cumulative is None else _put(f"{work}/cumulative.npy", made.cumulative)
    keys = "" if not options.filtered else _put(f"{work}/known.npy", _distinct_keys(known, options))
    return Prepared(options, made.head_share, cumulative, keys)


def _distinct_keys(known: TripleTables, options: Options) -> npt.NDArray[np.uint64]:
    keys = np.empty(known.count, np.uint64)
    filled = 0
    for triples in known.walk():
        keys[filled : filled + len(triples)] = triples.keys(options)
        filled += len(triples)
    return np.unique(keys)


def _put(path: str, array: npt.NDArray[Any]) -> str:
    store, place = storage.locate(path)
    with store.create(place) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)
    return path


@lru_cache(maxsize=2)
def _loaded(path: str) -> Any:
    store, place = storage.locate(path)
    with store.open(place) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def rows(spark: SparkSession, tables: TripleTables, prepared: Prepared, seed: int, epoch: int) -> DataFrame:
    """A row a triple: DDL; a shard a task.

    Args:
        spark: the session.
        tables: the triples that get negatives.
        prepared: how.
        seed: of the run.
        epoch: other negatives in each.
    """
    shards = tables.shards

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        negatives = prepared.negatives()
        for batch in batches:
            for number in batch.column(0).to_pylist():
                at, shard = shards[number]
                code = split_code(tables.tables[at].edge_type.split)
                yield from batches_of(tables.read(at, shard), code, negatives, seed, epoch)

    return spark.range(0, len(shards), 1, max(1, len(shards))).mapInArrow(run, DDL)


def split_code(split: str) -> int:
    """Place in SPLITS; edges that are not split are none."""
    return SPLITS.index("none" if split == "all" else split)


def batches_of(triples: Triples, split: int, negatives: Negatives, seed: int, epoch: int) -> Iterator[pa.RecordBatch]:
    """The rows of some triples, some 100,000 negatives at a time."""
    import pyarrow

    k = negatives.options.per_triple
    step = max(1, _BATCH_NEGATIVES // k)
    for low in range(0, len(triples), step):
        part = Triples(*(x[low : low + step] for x in (triples.head, triples.relation, triples.tail)))
        at_head, drawn = negatives.at_head(part, seed, epoch), negatives.draw(part, seed, epoch)
        side, negative = np.where(at_head, HEAD, TAIL), np.where(at_head, drawn.head, drawn.tail)
        offsets = pyarrow.array(np.arange(len(part) + 1, dtype=np.int32) * k)
        lists = [pyarrow.ListArray.from_arrays(offsets, pyarrow.array(x.reshape(-1))) for x in (side, negative)]
        keys = part.keys(negatives.options).view(np.int64)
        columns = [keys, np.full(len(part), split, np.int32), part.head, part.relation, part.tail]
        names = [column.split()[0] for column in DDL.split(", ")]
        yield pyarrow.RecordBatch.from_arrays([*map(pyarrow.array, columns), *lists], names)
