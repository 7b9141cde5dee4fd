"""The vocabulary of the categorical columns: counted on training days, kept in silver/ctr_vocabulary, only ever grown.

    ids of a generation, by column: 1 + (largest id so far, or 2), in the order of count descending, value ascending

A value enters once it stands `min_count` times in the training days; the id it gets then is its own for ever. All 26
columns are counted in one pass over (column, value) pairs: Spark sums up within each task first, so a value that fills
half the table crosses the network once a task, and what does not fit in memory spills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.errors import UserError
from headrace.features.hashing import bucket_column, place, places
from headrace.features.row_transform import Vocabulary
from headrace.features.transform import CATEGORIES, UNKNOWN_ID, CategoryRule

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from headrace.catalog.delta import DataFile

ENTRIES_PER_FILE = 8_000_000
SCHEMA = "column string, value bigint, id int, count bigint, generation int"


def value_counts(rows: DataFrame, columns: Sequence[str]) -> DataFrame:
    """How often each value stands in each column; missing cells are not counted.

    Args:
        rows: has `columns`, all bigint.
        columns: what to count.

    Returns:
        column string, value bigint, count bigint.
    """
    from pyspark.sql import functions as F

    pairs = ", ".join(f"{number}, `{name}`" for number, name in enumerate(columns))
    stacked = rows.selectExpr(f"stack({len(columns)}, {pairs}) AS (number, value)").where("value IS NOT NULL")
    counted = stacked.groupBy("number", "value").agg(F.count(F.lit(1)).alias("count"))
    return counted.select(_name_of(F.col("number"), columns).alias("column"), "value", "count")


def frequent(counts: DataFrame, min_count: int, by_column: Mapping[str, int]) -> DataFrame:
    """The counts that reach the limit of their column.

    Args:
        counts: as `value_counts` returns them.
        min_count: the limit where `by_column` names none.
        by_column: limit by column.
    """
    from pyspark.sql import functions as F

    limit = F.lit(min_count)
    for name, own in by_column.items():
        limit = F.when(F.col("column") == name, F.lit(own)).otherwise(limit)
    return counts.where(F.col("count") >= limit)


def grow(counts: DataFrame, existing: DataFrame, generation: int) -> DataFrame:
    """The entries to append: values of `counts` that `existing` lacks, with their new ids.

    Args:
        counts: column, value, count; what is to be known.
        existing: the vocabulary so far (SCHEMA); may be empty.
        generation: the number of this growth.

    Returns:
        SCHEMA, in files of about `ENTRIES_PER_FILE`; the same rows for the same input, in any order of `counts`.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    new = counts.join(existing.select("column", "value"), ["column", "value"], "left_anti")
    last = existing.groupBy("column").agg(F.max("id").alias("last"))
    order = Window.partitionBy("column").orderBy(F.col("count").desc(), F.col("value"))
    position = F.row_number().over(order)
    return (
        new.join(F.broadcast(last), "column", "left")
        .withColumn("id", F.coalesce("last", F.lit(UNKNOWN_ID)) + position)
        .select("column", "value", F.col("id").cast("int"), "count", F.lit(generation).alias("generation"))
    )


def lay_out(entries: DataFrame, num_entries: int) -> DataFrame:
    """Sort new entries into files by column and id, each entry in a file that its value decides."""
    from pyspark.sql import functions as F

    num_files = max(1, -(-num_entries // ENTRIES_PER_FILE))
    spots = F.array(*[F.lit(int(spot)) for spot in places(num_files)])
    number = bucket_column(F.col("value"), num_files).cast("int")
    placed = place(entries.withColumn("_place", F.element_at(spots, number + 1)), "_place", num_files)
    return placed.sortWithinPartitions("column", "id").drop("_place")


def rules(
    kinds: Mapping[str, str], num_known: Mapping[str, int], hash_size: int, hash_size_by_column: Mapping[str, int]
) -> dict[str, CategoryRule]:
    """The rule of every column.

    Args:
        kinds: one of `transform.KINDS` by column.
        num_known: entries of the vocabulary by column.
        hash_size: buckets of a column that has no vocabulary.
        hash_size_by_column: the same by column.
    """
    sizes = {
        name: num_known.get(name, 0) if kinds[name] == "vocabulary" else hash_size_by_column.get(name, hash_size)
        for name in CATEGORIES
    }
    return {name: CategoryRule(kinds[name], size + UNKNOWN_ID + 1) for name, size in sizes.items()}


def choose_kinds(choice: str, num_frequent: Mapping[str, int], above: int, before: Mapping[str, str]) -> dict[str, str]:
    """Which columns are hashed.

    Args:
        choice: one of `transform.KINDS` for all, or `auto`: a vocabulary, or hashed, by cardinality.
        num_frequent: values that reach the limit, by column.
        above: `auto` hashes a column with more than so many.
        before: what was chosen in an earlier run; `auto` keeps to it, since ids may not change.
    """
    if choice != "auto":
        return dict.fromkeys(CATEGORIES, choice)
    return {n: before.get(n) or ("hash" if num_frequent.get(n, 0) > above else "vocabulary") for n in CATEGORIES}


def check_size(num_entries: Mapping[str, int], limit: int) -> None:
    """Refuse a vocabulary that a worker could not hold.

    Every worker holds 15 bytes an entry, up to `broadcast_entries`; scoring and the driver hold all of it.

    Raises:
        UserError: more than `limit` entries; the remedy names the widest column.
    """
    total = sum(num_entries.values())
    if total > limit:
        widest = max(num_entries, key=lambda name: num_entries[name])
        raise UserError(
            f"the vocabulary would have {total:,} entries, more than max_vocabulary {limit:,}; "
            f"{widest} alone has {num_entries[widest]:,}",
            f"hash the wide columns (--categories auto --hash_above {max(1, limit // 26)}), raise the limit on counts "
            f"(--min_count_by_column {widest}=20), or allow more (--max_vocabulary; 15 bytes an entry on a worker)",
        )


def load(files: Sequence[DataFile]) -> Vocabulary:
    """Read the vocabulary of a pinned version, without Spark.

    Args:
        files: `files_at` of silver/ctr_vocabulary.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["column", "value", "id"]
    read = {"columns": columns, "read_dictionary": ["column"], "partitioning": None}
    tables = [pq.read_table(file.path, **read) for file in files]
    schema = pa.schema({"column": pa.dictionary(pa.int32(), pa.string()), "value": pa.int64(), "id": pa.int32()})
    tables = [table.unify_dictionaries().cast(schema) for table in tables] or [schema.empty_table()]
    return Vocabulary.from_arrow(pa.concat_tables(tables).unify_dictionaries())


def _name_of(number: Column, columns: Sequence[str]) -> Column:
    from pyspark.sql import functions as F

    return F.element_at(F.array(*[F.lit(name) for name in columns]), number + 1)
