"""Table care: compacting small files, and removing files that no version in reach needs.

Compacting commits a version with the same rows in fewer files; versions before it stay readable until their files are
vacuumed. Vacuuming removes what the newest version does not name and what was taken out of the table longer ago than
the retention, and what a killed writer left behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.catalog import storage
from headrace.catalog.delta import is_conflict
from headrace.catalog.log import Log
from headrace.errors import UserError
from headrace.session import configured

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_RETENTION_CHECK = "spark.databricks.delta.retentionDurationCheck.enabled"
_LISTING = "spark.sql.sources.parallelPartitionDiscovery.parallelism"
_SIZES = ("spark.databricks.delta.optimize.minFileSize", "spark.databricks.delta.optimize.maxFileSize")


@dataclass(frozen=True)
class Size:
    """Version, files and bytes of a table."""

    version: int
    files: int
    bytes: int


@dataclass(frozen=True)
class Removable:
    """A file that a vacuum would remove, as an absolute path, and its bytes."""

    path: str
    bytes: int


def size_of(path: str) -> Size:
    """How large the newest version of a table is."""
    snapshot = Log(path).snapshot()
    return Size(snapshot.version, len(snapshot.files), sum(file.size for file in snapshot.files))


def compact(spark: SparkSession, path: str, file_bytes: int, parquet: Mapping[str, str]) -> None:
    """Rewrite files under `file_bytes` into files of about so many; no new version where there is nothing to join.

    Args:
        spark: the session.
        path: of the table.
        file_bytes: see above.
        parquet: settings of Parquet's writer, the table's own.

    Raises:
        UserError: another writer came between each time.
    """
    from delta.tables import DeltaTable

    with configured(spark, {**parquet, **dict.fromkeys(_SIZES, str(file_bytes))}):
        try:
            DeltaTable.forPath(spark, path).optimize().executeCompaction().collect()
        except Exception as error:
            if not is_conflict(error):
                raise
            raise UserError(f"{path}: another writer changed the files being compacted", "run it again") from error


def removable(spark: SparkSession, path: str, retain_hours: float) -> list[Removable]:
    """What a vacuum would remove; nothing is changed."""
    store, _ = storage.locate(path)
    with configured(spark, _for_vacuum(spark)):
        rows = spark.sql(f"{_vacuum(path, retain_hours)} DRY RUN").collect()
    files = sorted(_plain(row[0]) for row in rows)
    sizes: dict[str, dict[str, int]] = {}
    found = []
    for file in files:
        folder, name = file.rsplit("/", 1)
        if folder not in sizes:
            sizes[folder] = store.sizes(folder)
        if name in sizes[folder]:  # not a folder left empty
            found.append(Removable(file, sizes[folder][name]))
    return found


def vacuum(spark: SparkSession, path: str, retain_hours: float) -> None:
    """Remove what `removable` lists. Versions that named such files cannot be read any more."""
    with configured(spark, _for_vacuum(spark)):
        spark.sql(_vacuum(path, retain_hours)).collect()


def _for_vacuum(spark: SparkSession) -> dict[str, str]:
    """The caller has checked the retention, against more than Delta knows; and Delta would list in 10,000 tasks."""
    return {_RETENTION_CHECK: "false", _LISTING: str(4 * spark.sparkContext.defaultParallelism)}


def _vacuum(path: str, retain_hours: float) -> str:
    quoted = path.replace("`", "``")
    return f"VACUUM delta.`{quoted}` RETAIN {float(retain_hours):f} HOURS"


def _plain(path: str) -> str:
    local = storage.local_path(path)
    return path if local is None else local
