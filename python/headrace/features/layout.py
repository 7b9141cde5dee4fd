"""The layout of silver/ctr: how many files from how many rows, and row groups of one size.

Parquet 1.15 has no limit on the rows of a group: it looks at the buffered bytes, and at some row counts only. Asked to
look first, and then only, after N rows, with a byte limit that N rows always pass, it ends every group after exactly N.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headrace.session import configured

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Passed by N = 1,024 rows already: a row's key alone, in the order of a hash, does not compress below 4 bytes.
_BLOCK_BYTES = 4096
# A dictionary that a column outgrows is paid for twice: at 16 KiB it is given up early, and where it is known that it
# will not do it is not begun (docs/log.md).
_DICTIONARY_BYTES = 16 << 10
_VALUE_BYTES = 4
MIN_GROUP_ROWS = 1024


def files_for(rows: Mapping[str, int], rows_per_file: int) -> dict[str, int]:
    """Files by split, from rows alone: cores and cluster must not show in the table.

    Args:
        rows: rows by split.
        rows_per_file: about so many in a file.
    """
    return {name: max(1, -(-count // rows_per_file)) for name, count in rows.items()}


@contextmanager
def row_groups(spark: SparkSession, rows: int, features: Mapping[str, int | None] | None = None) -> Iterator[None]:
    """Write Parquet in row groups of `rows` rows (the last of a file has the rest), zstd, inside the `with`.

    These are settings of the session, since Delta's writer does not pass its options on; they are put back.

    Args:
        spark: the session.
        rows: rows of a group.
        features: columns of 32-bit values in no order, and how many different ones there may be (None: not known).
            Minimum and maximum of a group tell nothing of them, and are left out.
    """
    settings = {
        "parquet.block.size": str(_BLOCK_BYTES),
        "parquet.page.size.row.check.min": str(rows),
        "parquet.page.size.row.check.max": str(rows),
        "parquet.dictionary.page.size": str(_DICTIONARY_BYTES),
        "parquet.compression.codec.zstd.level": "1",
        # Histograms of levels: one value a cell in every scalar column, and nobody who reads them.
        "parquet.size.statistics.enabled": "false",
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.sql.files.maxRecordsPerFile": "0",
    }
    for name, values in (features or {}).items():
        settings[f"parquet.column.statistics.enabled#{name}"] = "false"
        if values is not None and values * _VALUE_BYTES > _DICTIONARY_BYTES:
            settings[f"parquet.enable.dictionary#{name}"] = "false"
    with configured(spark, settings):
        yield
