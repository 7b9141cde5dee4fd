"""Records of crawl files as rows of `bronze/commoncrawl` and `quarantine/commoncrawl`, and their census.

The reader (`spark.read.format("warc")`) gives a row for every record and for every stretch of bytes that is none, so
that the lengths of a file's rows add up to its size. A row is refused where the reader says so, where a digest does not
hold, or where a record is not the one that the URL index promised; else it is committed if its type was asked for, and
counted as left out if not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.ingest.lines import LINE_BITS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

BAD_DIGEST = ("quarantine", "keep")
DIGEST_REASON = "a digest of the record does not hold"
INDEX_REASON = "the record is not of the address that the index says"
STRAY_REASON = "the index names no record at this place"
_PLACE = ("file", "offset", "length", "type", "error")
_NAMED = ("record_id", "target_uri")
_COPIED = ("date", "content_type", "http_status", "http_content_type", "payload_digest", "block_digest", "truncated")


@dataclass(frozen=True)
class Reading:
    """How files are read; kept in the ledger with every file.

    Args:
        types: record types to commit; () for whatever a file is for, see `types_of`; ("all",) for all.
        bad_digest: quarantine, or keep (with `digest_ok` false).
        payload: commit payloads.
        max_record_bytes: larger records are refused; 0 = the reader's default.
        max_ratio: members that inflate more are refused; 0 = the reader's default.
        raw_bytes: how much of what is refused is kept.
    """

    types: tuple[str, ...] = ()
    bad_digest: str = "quarantine"
    payload: bool = True
    max_record_bytes: int = 0
    max_ratio: int = 0
    raw_bytes: int = 1 << 16

    def detail(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self.__dict__, "types": list(self.types)}

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> Reading:
        """The inverse of `detail`; other entries are passed over."""
        values = {name: detail[name] for name in cls.__dataclass_fields__}
        return cls(**(values | {"types": tuple(detail["types"])}))

    def same_census(self, other: Reading) -> bool:
        """Do both see the same records as intact?"""
        return (self.max_record_bytes, self.max_ratio) == (other.max_record_bytes, other.max_ratio)


@dataclass(frozen=True)
class CrawlFile:
    """A file to read.

    Args:
        path: where it is read from.
        ordinal: its number; a row's key is `ordinal << 40 | offset`.
        origin: what the tables call it.
        crawl: of its rows.
        types: to commit; () for all.
        places: of a file made of single records: where each came from, see `Place`.
    """

    path: str
    ordinal: int = 0
    origin: str = ""
    crawl: str = ""
    types: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Place:
    """A single record that was fetched: where it is in the file read, where it came from, whose it must be."""

    at: int
    file: str
    offset: int
    uri: str


@dataclass
class Count:
    """Rows and bytes, and how many of them have a digest that does not hold."""

    rows: int = 0
    bytes: int = 0
    bad_digests: int = 0
    bad_digest_bytes: int = 0


@dataclass
class Census:
    """What is in a file: intact records by type, and what the reader refuses."""

    types: dict[str, Count] = field(default_factory=dict)
    refused: Count = field(default_factory=Count)

    @property
    def rows(self) -> int:
        """Records, and stretches of bytes that are none."""
        return self.refused.rows + sum(count.rows for count in self.types.values())

    @property
    def bytes(self) -> int:
        """Their lengths; the size of the file."""
        return self.refused.bytes + sum(count.bytes for count in self.types.values())

    def account(self, types: Sequence[str], bad_digest: str) -> Account:
        """What must come of the file.

        Args:
            types: to commit; () for all.
            bad_digest: quarantine or keep.
        """
        wanted = [count for name, count in self.types.items() if not types or name in types]
        left = [count for name, count in self.types.items() if types and name not in types]
        spoilt = sum(count.bad_digests for count in wanted) if bad_digest == "quarantine" else 0
        spoilt_bytes = sum(count.bad_digest_bytes for count in wanted) if bad_digest == "quarantine" else 0
        return Account(
            committed=sum(count.rows for count in wanted) - spoilt,
            committed_bytes=sum(count.bytes for count in wanted) - spoilt_bytes,
            refused=self.refused.rows + spoilt,
            refused_bytes=self.refused.bytes + spoilt_bytes,
            left_out=sum(count.rows for count in left),
            left_out_bytes=sum(count.bytes for count in left),
        )


@dataclass(frozen=True)
class Account:
    """Rows and bytes of a file by what becomes of them."""

    committed: int
    committed_bytes: int
    refused: int
    refused_bytes: int
    left_out: int
    left_out_bytes: int


def types_of(census: Census, asked: Sequence[str]) -> tuple[str, ...]:
    """The record types to commit of a file; () for all.

    Where none are asked for, by what the file is: responses, resources and conversions (WARC, ARC, WET), else metadata
    (WAT), else all.
    """
    if asked:
        return () if "all" in asked else tuple(asked)
    for usual in (("response", "resource", "conversion"), ("metadata",)):
        if set(usual) & set(census.types):
            return usual
    return ()


def take_census(spark: SparkSession, files: Sequence[CrawlFile], reading: Reading) -> dict[str, Census]:
    """Every file's census, by path, in one pass that keeps no payload."""
    from pyspark.sql import functions as F

    rows = _records(spark, files, reading, (*_PLACE, "target_uri", "digest_ok"))
    kind = F.when(F.col("reason").isNull(), F.coalesce("type", F.lit(""))).alias("kind")
    bad = ~F.coalesce("digest_ok", F.lit(True))
    counted = rows.groupBy("path", kind).agg(
        F.count("*").alias("rows"),
        F.sum("length").alias("bytes"),
        F.count_if(bad).alias("bad_digests"),
        F.coalesce(F.sum(F.when(bad, F.col("length"))), F.lit(0)).alias("bad_digest_bytes"),
    )
    found = {file.path: Census() for file in files}
    for row in counted.collect():
        count = Count(row.rows, row.bytes, row.bad_digests, row.bad_digest_bytes)
        if row.kind is None:
            found[row.path].refused = count
        else:
            found[row.path].types[row.kind] = count
    return found


def accepted(spark: SparkSession, files: Sequence[CrawlFile], reading: Reading) -> DataFrame:
    """Rows of `bronze/commoncrawl`, without `batch_id`."""
    from pyspark.sql import functions as F

    headers = ("warc_headers", "http_headers")
    body = ("payload", "body") if reading.payload else ()
    columns = (*_PLACE, *_NAMED, *_COPIED, *headers, "digest_ok", "payload_length", *body)
    rows = _records(spark, files, reading, columns)
    rows = rows.where(_is_wanted() & _reason(reading).isNull())
    nothing = F.lit(None).cast("binary")
    same = F.col("body") == F.col("payload") if reading.payload else F.lit(True)
    return rows.select(
        (F.shiftleft(F.col("ordinal").cast("bigint"), LINE_BITS) + F.col("offset")).alias("key"),
        "crawl",
        F.col("origin").alias("file"),
        F.col("origin_offset").alias("offset"),
        "length",
        "type",
        *_NAMED,
        *_COPIED,
        *(
            F.col(f"{each}s.{part}").alias(f"{each}_{part}s")
            for each in ("warc_header", "http_header")
            for part in ("name", "value")
        ),
        "digest_ok",
        "payload_length",
        (F.col("payload") if reading.payload else nothing).alias("payload"),
        (F.when(~same, F.col("body")) if reading.payload else nothing).alias("body"),
    )


def rejected(spark: SparkSession, files: Sequence[CrawlFile], reading: Reading) -> DataFrame:
    """Rows of `quarantine/commoncrawl`, without `batch_id`."""
    from pyspark.sql import functions as F

    rows = _records(spark, files, reading, (*_PLACE, *_NAMED, "digest_ok"))
    reason = _reason(reading)
    rows = rows.where(reason.isNotNull() & (F.col("reason").isNotNull() | _is_wanted()))
    rows = rows.select(
        F.col("origin").alias("file"),
        F.col("ordinal").alias("file_ordinal"),
        F.col("origin_offset").alias("offset"),
        "length",
        F.col("length").alias("raw_length"),
        "type",
        *_NAMED,
        reason.alias("reason"),
        "path",
        F.col("offset").alias("at"),
    )
    ddl = ", ".join(f"{f.name} {f.dataType.simpleString()}" for f in rows.schema if f.name not in ("path", "at"))
    return rows.mapInArrow(_with_raw(reading.raw_bytes), f"{ddl}, raw binary")


def _records(spark: SparkSession, files: Sequence[CrawlFile], reading: Reading, columns: Sequence[str]) -> DataFrame:
    """The reader's rows with the file's facts beside them, and the reason why a row is refused whatever its type."""
    from pyspark.sql import functions as F

    reader = spark.read.format("warc")
    if reading.max_record_bytes:
        reader = reader.option("maxRecordBytes", str(reading.max_record_bytes))
    if reading.max_ratio:
        reader = reader.option("maxRatio", str(reading.max_ratio))
    if "body" in columns:
        reader = reader.option("body", "true")
    if all(file.types for file in files):
        reader = reader.option("types", ",".join(sorted({name for file in files for name in file.types})))
    rows = reader.load([file.path for file in files]).select(*columns)
    rows = rows.withColumn("path", F.regexp_replace("file", "^file:(//)?", "")).drop("file")
    facts = [(file.path, file.ordinal, file.origin, file.crawl, list(file.types), bool(file.places)) for file in files]
    ddl = "path string, ordinal int, origin_file string, crawl string, types array<string>, single boolean"
    rows = rows.join(F.broadcast(_frame(spark, facts, ddl)), "path")
    places = [(file.path, p.at, p.file, p.offset, p.uri) for file in files for p in file.places]
    if not places:
        return rows.withColumnsRenamed({"origin_file": "origin", "error": "reason"}).withColumn(
            "origin_offset", F.col("offset")
        )
    ddl = "path string, offset bigint, place_file string, origin_offset bigint, place_uri string"
    rows = rows.join(F.broadcast(_frame(spark, places, ddl)), ["path", "offset"], "left")
    stray = F.when(F.col("single") & F.col("place_file").isNull(), F.lit(STRAY_REASON))
    other = F.when(F.col("single") & ~F.col("target_uri").eqNullSafe(F.col("place_uri")), F.lit(INDEX_REASON))
    return rows.select(
        *[name for name in columns if name not in ("file", "error")],
        "path",
        "ordinal",
        "crawl",
        "types",
        F.coalesce("place_file", "origin_file").alias("origin"),
        F.coalesce("origin_offset", "offset").alias("origin_offset"),
        F.coalesce("error", stray, other).alias("reason"),
    )


def _frame(spark: SparkSession, rows: Sequence[tuple[Any, ...]], ddl: str) -> DataFrame:
    """Rows of this process, by Arrow: no Python worker starts for them."""
    from pyspark.sql.types import StructType

    schema: Any = StructType.fromDDL(ddl)
    columns = list(zip(*rows, strict=True))
    types = {"string": pa.string(), "int": pa.int32(), "bigint": pa.int64(), "boolean": pa.bool_()}
    arrow = [types.get(each.dataType.simpleString(), pa.list_(pa.string())) for each in schema]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, arrow, strict=True)]
    return spark.createDataFrame(pa.table(arrays, names=schema.names), schema)


def _is_wanted() -> Column:
    from pyspark.sql import functions as F

    return (F.size("types") == 0) | F.array_contains("types", F.coalesce("type", F.lit("")))


def _reason(reading: Reading) -> Column:
    from pyspark.sql import functions as F

    if reading.bad_digest == "keep":
        return F.col("reason")
    return F.coalesce("reason", F.when(~F.col("digest_ok"), F.lit(DIGEST_REASON)))


def _with_raw(raw_bytes: int) -> Any:
    """Adds the first bytes of what was refused, as they stand in the file."""

    def add(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            table = batch.to_pydict()
            raw = []
            for path, at, length in zip(table["path"], table["at"], table["length"], strict=True):
                with open(path, "rb") as file:
                    file.seek(at)
                    raw.append(file.read(min(length, raw_bytes)))
            kept = [name for name in batch.schema.names if name not in ("path", "at")]
            columns = [batch.column(batch.schema.get_field_index(name)) for name in kept]
            yield pa.RecordBatch.from_arrays([*columns, pa.array(raw, pa.binary())], [*kept, "raw"])

    return add
