"""Documents to tokens to packed sequences: DataFrame to DataFrame, without side effects on tables.

Documents go into slices by the hash of their key, and lie in a slice in the order of that hash: the stream of all
documents is the slices one after the other, whatever the number of tasks. Where a slice begins in the stream is the sum
of the tokens before it; the one sequence that runs over its end takes its rest from the first tokens of the next ones,
which are few and known to every task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.features.hashing import order_column, places, slice_column
from headrace.features.packing import Pieces, Sequences, best_fit, concatenate
from headrace.features.tokenizer import Encoder, Trained, element_of

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession

MODES = ("concat", "best_fit")
MAX_LENGTH = 1 << 20
_SAMPLE_SLICES = 1 << 16
_SPLIT_SEED = 0x5EED  # another hash than the order's, or the splits would be stretches of the order
_DOCUMENTS_A_BATCH = 256
_TOKENS_A_BATCH = 1 << 20
_SIGN = -(1 << 63)
_TOKENS_DDL = "key bigint, num_tokens int, tokens binary"
_HEADS_DDL = "slice int, total bigint, keys array<bigint>, lengths array<bigint>, tokens binary"
_SEQUENCES_DDL = (
    "key bigint, split string, num_tokens int, documents int, tokens binary, segments binary, "
    "doc_keys array<bigint>, doc_offsets array<bigint>, doc_starts array<int>"
)


@dataclass(frozen=True)
class Packing:
    """How documents become sequences.

    Args:
        length: tokens of a sequence.
        mode: concat or best_fit.
        pad_tail: fill each split's last sequence rather than drop what is left (concat).
        drop_long: leave out documents that are longer than a sequence rather than cut them (best_fit).
        element: the type tokens are kept in.
        end_of_text: the token after each document.
        padding: the token that fills.
        seed: of the order.
    """

    length: int
    mode: str
    pad_tail: bool
    drop_long: bool
    element: str
    end_of_text: int
    padding: int
    seed: int

    @property
    def segment_element(self) -> str:
        """The type segment numbers are kept in: a sequence has at most `length` of them."""
        return "uint16" if self.length < 1 << 16 else "int32"


@dataclass(frozen=True)
class Slices:
    """The slices of all splits: numbers 0 .. n-1, split after split.

    Args:
        of_split: number of slices by split, in the order of SPLITS.
    """

    of_split: Mapping[str, int]

    @property
    def total(self) -> int:
        """Slices of all splits."""
        return sum(self.of_split.values())

    def first(self, split: str) -> int:
        """The split's first slice."""
        names = list(self.of_split)
        return sum(self.of_split[name] for name in names[: names.index(split)])

    def split(self, number: int) -> str:
        """The split of a slice."""
        return next(name for name in reversed([*self.of_split]) if self.of_split[name] and number >= self.first(name))


def sample(corpus: DataFrame, limit_bytes: int, max_document_chars: int, seed: int) -> list[str]:
    """The first documents in the order of a hash of their key, up to `limit_bytes` of text (at least one document).

    Args:
        corpus: key bigint, text string.
        limit_bytes: UTF-8 bytes wanted.
        max_document_chars: only so much of a document.
        seed: of the hash.

    Returns:
        Texts in that order: the same for the same documents in any partitions.
    """
    from pyspark.sql import functions as F

    texts = corpus.select("key", F.substring("text", 1, max_document_chars).alias("text")).where("text != ''")
    texts = texts.withColumn("_order", order_column(F.col("key"), seed)).withColumn("_bytes", F.octet_length("text"))
    texts = texts.withColumn("_slice", slice_column(F.col("_order"), F.lit(_SAMPLE_SLICES)))
    sizes = texts.groupBy("_slice").agg(F.sum("_bytes").alias("bytes")).orderBy("_slice").toArrow()
    upto = np.cumsum(sizes.column("bytes").to_numpy())
    if not len(upto):
        return []
    last = sizes.column("_slice")[min(int(np.searchsorted(upto, limit_bytes)), len(upto) - 1)].as_py()
    rows = texts.where(F.col("_slice") <= last).select("_order", "key", "text", "_bytes").toArrow()
    rows = rows.sort_by([("_order", "ascending"), ("key", "ascending")])
    kept = int((np.cumsum(rows.column("_bytes").to_numpy()) <= limit_bytes).sum())
    return [str(text) for text in rows.column("text").slice(0, max(1, kept)).to_pylist()]


def encode(corpus: DataFrame, trained: Trained) -> DataFrame:
    """Token ids of every document.

    Args:
        corpus: key bigint, text string (null is no token).
        trained: the tokenizer.

    Returns:
        key, num_tokens, tokens: little-endian numbers of `element_of(vocab_size)`.
    """

    def encode_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        encoder, element = _encoder(trained.text, trained.sha256), element_of(trained.vocab_size)
        for batch in batches:
            found = encoder.encode([text or "" for text in batch.column("text").to_pylist()])
            columns = {
                "key": batch.column("key"),
                "num_tokens": pa.array([len(tokens) for tokens in found], pa.int32()),
                "tokens": pa.array([tokens.astype(f"<{_code(element)}").tobytes() for tokens in found], pa.binary()),
            }
            yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    return corpus.select("key", "text").mapInArrow(encode_batches, _TOKENS_DDL)


def split_column(key: Column, shares: Mapping[str, float]) -> Column:
    """train, validation or test by a hash of the key.

    Args:
        key: bigint.
        shares: of validation and test, of 1; train has the rest.
    """
    from pyspark.sql import functions as F

    hashed = order_column(key, _SPLIT_SEED)
    test = _cut(shares["test"])
    validation = _cut(shares["test"] + shares["validation"])
    return F.when(hashed < F.lit(test), "test").when(hashed < F.lit(validation), "validation").otherwise("train")


def place_documents(tokens: DataFrame, slices: Slices, seed: int) -> DataFrame:
    """Each slice's documents in one partition, in order.

    Args:
        tokens: key, split, num_tokens, tokens.
        slices: how many there are.
        seed: of the order.

    Returns:
        slice, key, num_tokens, tokens.
    """
    from pyspark.sql import functions as F

    order = order_column(F.col("key"), seed)
    first, count = F.lit(0), F.lit(1)
    for name, number in slices.of_split.items():
        first = F.when(F.col("split") == name, F.lit(slices.first(name))).otherwise(first)
        count = F.when(F.col("split") == name, F.lit(max(1, number))).otherwise(count)
    spots = F.array(*[F.lit(int(spot)) for spot in places(slices.total)])
    placed = tokens.withColumn("_order", order).withColumn(
        "slice", (first + slice_column(F.col("_order"), count)).cast("int")
    )
    placed = placed.withColumn("_place", F.element_at(spots, F.col("slice") + 1))
    placed = placed.repartition(slices.total, "_place").sortWithinPartitions("slice", "_order", "key")
    return placed.select("slice", "key", "num_tokens", "tokens")


def pack(placed: DataFrame, slices: Slices, packing: Packing) -> DataFrame:
    """Sequences of placed documents.

    Args:
        placed: as `place_documents` returns it; read more than once, so persist it.
        slices: the same.
        packing: how.

    Returns:
        The columns of gold/token_sequences, in the order of their keys.
    """
    work = _concat(placed, slices, packing) if packing.mode == "concat" else _best_fit(slices, packing)
    packed = placed.mapInArrow(work, _SEQUENCES_DDL)
    # `split` leads the sort as Delta's writer wants its partition column sorted.
    return packed.sortWithinPartitions("split", "key")


@contextmanager
def small_batches(spark: SparkSession, rows: int = _DOCUMENTS_A_BATCH) -> Iterator[None]:
    """Hand over few documents at a time inside the `with`: ten thousand long ones are gigabytes."""
    key = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(key)
    spark.conf.set(key, str(rows))
    try:
        yield
    finally:
        spark.conf.set(key, str(before))


Work = Callable[[Iterable["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]


def _concat(placed: DataFrame, slices: Slices, packing: Packing) -> Work:
    heads = _heads(placed, packing)
    starts, bases = _starts(heads, slices, packing)
    following = placed.sparkSession.sparkContext.broadcast(_following(heads, slices, packing))

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number, bunches in _by_slice(batches, packing):
            rest = _pieces_of(*following.value[number])
            pad = packing.padding if packing.pad_tail else None
            for made in concatenate(bunches, starts[number], packing.length, rest, pad=pad):
                yield from _batches(made, bases[number], slices.split(number), packing)

    return work


def _best_fit(slices: Slices, packing: Packing) -> Work:
    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number, bunches in _by_slice(batches, packing):
            documents = Pieces.concat(bunches)
            made = best_fit(documents, packing.length, pad=packing.padding, drop_long=packing.drop_long)
            yield from _batches(made, number << 40, slices.split(number), packing)

    return work


def _heads(placed: DataFrame, packing: Packing) -> dict[int, Any]:
    """By slice that has documents: its number of tokens, and the first `length - 1` of them as pieces."""
    want = packing.length - 1

    def head(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for number, bunches in _by_slice(batches, packing):
            found, total = Pieces.none(), 0
            for bunch in bunches:
                total += bunch.num_tokens
                if found.num_tokens < want:
                    found = Pieces.concat([found, bunch])
            found = found.span(0, min(want, found.num_tokens))
            row = {"slice": number, "total": total, "keys": found.keys, "lengths": found.lengths}
            yield pa.RecordBatch.from_pylist([row | {"tokens": _bytes(found.tokens, packing.element)}], _heads_schema())

    return {row["slice"]: row for row in placed.mapInArrow(head, _HEADS_DDL).collect()}


def _starts(heads: Mapping[int, Any], slices: Slices, packing: Packing) -> tuple[list[int], list[int]]:
    """By slice: where it begins in its split's stream, and the key of its split's first sequence."""
    starts, bases, base = [], [], 0
    for name, number in slices.of_split.items():
        own = [heads[i]["total"] if i in heads else 0 for i in range(slices.first(name), slices.first(name) + number)]
        starts += list(itertools.accumulate(own, initial=0))[:-1]
        bases += [base] * number
        base += -(-sum(own) // packing.length)
    return starts, bases


def _following(heads: Mapping[int, Any], slices: Slices, packing: Packing) -> dict[int, tuple[Any, ...]]:
    """By slice: the first `length - 1` tokens of what comes after it in its split."""
    want = packing.length - 1
    result: dict[int, tuple[Any, ...]] = {}
    for name, number in slices.of_split.items():
        rest = Pieces.none()
        for place in reversed(range(slices.first(name), slices.first(name) + number)):
            result[place] = (rest.keys, rest.lengths, rest.tokens.astype(packing.element))
            if place in heads:
                row = heads[place]
                own = np.frombuffer(row["tokens"], f"<{_code(packing.element)}")
                rest = Pieces.concat([_pieces_of(np.array(row["keys"]), np.array(row["lengths"]), own), rest])
                rest = rest.span(0, min(want, rest.num_tokens))
    return result


def _pieces_of(keys: Any, lengths: Any, tokens: Any) -> Pieces:
    keys, lengths = keys.astype(np.int64), lengths.astype(np.int64)
    return Pieces(keys, np.zeros(len(keys), np.int64), lengths, tokens.astype(np.int64))


def _by_slice(batches: Iterable[pa.RecordBatch], packing: Packing) -> Iterator[tuple[int, Iterator[Pieces]]]:
    """A partition's documents by slice: it holds one, unless Spark has put two together."""

    def parts() -> Iterator[tuple[int, pa.RecordBatch]]:
        for batch in batches:
            numbers = batch.column("slice").to_numpy()
            borders = np.flatnonzero(np.diff(numbers)) + 1
            for first, last in itertools.pairwise([0, *borders.tolist(), len(numbers)]):
                if last > first:
                    yield int(numbers[first]), batch.slice(first, last - first)

    for number, group in itertools.groupby(parts(), key=lambda part: part[0]):
        yield number, (_documents(batch, packing) for _, batch in group)


def _documents(batch: pa.RecordBatch, packing: Packing) -> Pieces:
    cells, dtype = batch.column("tokens"), np.dtype(f"<{_code(packing.element)}")
    offsets = np.frombuffer(cells.buffers()[1], np.int32)[cells.offset : cells.offset + len(cells) + 1]
    data = cells.buffers()[2]
    flat = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].view(dtype) if data else np.empty(0, dtype)
    lengths = np.diff(offsets).astype(np.int64) // dtype.itemsize
    return Pieces.of_documents(batch.column("key").to_numpy(), lengths, flat, packing.end_of_text)


def _batches(made: Sequences, base: int, split: str, packing: Packing) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    step = max(1, _TOKENS_A_BATCH // packing.length)
    ends = np.concatenate([[0], np.cumsum(made.counts)])
    for start in range(0, len(made), step):
        rows, stop = slice(start, start + step), min(start + step, len(made))
        parts = slice(int(ends[start]), int(ends[stop]))
        lists = pa.array((ends[start : stop + 1] - ends[start]).astype(np.int32))
        columns = {
            "key": pa.array(made.numbers[rows] + base),
            "split": pa.array([split] * (stop - start), pa.string()),
            "num_tokens": pa.array(made.filled[rows].astype(np.int32)),
            "documents": pa.array(made.counts[rows].astype(np.int32)),
            "tokens": _cells(made.tokens[rows], packing.element),
            "segments": _cells(made.segments[rows], packing.segment_element),
            "doc_keys": pa.ListArray.from_arrays(lists, pa.array(made.keys[parts])),
            "doc_offsets": pa.ListArray.from_arrays(lists, pa.array(made.offsets[parts])),
            "doc_starts": pa.ListArray.from_arrays(lists, pa.array(made.starts[parts].astype(np.int32))),
        }
        yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _cells(rows: Any, element: str) -> pa.Array:
    """[n, length] as a binary column."""
    import pyarrow as pa

    size = rows.shape[1] * np.dtype(element).itemsize
    buffer = pa.py_buffer(_bytes(rows, element))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(rows), [None, buffer]).cast(pa.binary())


def _bytes(values: Any, element: str) -> bytes:
    return bytes(np.ascontiguousarray(values, f"<{_code(element)}").tobytes())


def _code(element: str) -> str:
    return np.dtype(element).str[1:]


def _heads_schema() -> pa.Schema:
    import pyarrow as pa

    longs = pa.list_(pa.int64())
    return pa.schema(
        [("slice", pa.int32()), ("total", pa.int64()), ("keys", longs), ("lengths", longs), ("tokens", pa.binary())]
    )


def _cut(share: float) -> int:
    """The hash below which there is this share of all hashes."""
    return min(_SIGN + int(share * 2**64), -_SIGN - 1)


@lru_cache(maxsize=2)
def _encoder(text: str, sha256: str) -> Encoder:
    return Encoder(text, sha256)
