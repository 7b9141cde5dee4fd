"""A batch's part of a table: written in one Delta commit, counted in the table, taken out in one commit; each once.

The batch's transaction identifier sees to it. Whoever gives a batch up takes the identifier first, so that nobody who
is still at work on the batch can write what is no longer wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.catalog import delta
from headrace.catalog.ledger import LedgerFile
from headrace.catalog.log import Log
from headrace.catalog.spec import TableSpec
from headrace.ingest.lines import LINE_BITS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_REMOVED = "rows_removed"  # in a removal's commit: rows by file ordinal


class Tally(NamedTuple):
    """Rows, and the sum of a measure over them."""

    rows: int
    measure: int


@dataclass(frozen=True)
class Batch:
    """One batch of one source's `bronze/NAME` and `quarantine/NAME`.

    Args:
        spark: the session.
        lake: folder of the tables.
        batch_id: stands in every row, and in the transaction identifiers.
    """

    spark: SparkSession
    lake: str
    batch_id: str

    def write(self, spec: TableSpec, rows: DataFrame) -> delta.Commit:
        """Commit the batch's rows (without `batch_id`) to a table, unless that was done before."""
        from pyspark.sql import functions as F

        rows = rows.withColumn("batch_id", F.lit(self.batch_id)).select(*[column.name for column in spec.columns])
        options = delta.WriteOptions(txn=(f"headrace-batch-{self.batch_id}", 1), quality=False)
        return delta.write(rows, spec, self.lake, batch_id=self.batch_id, options=options)

    def seal(self, spec: TableSpec) -> None:
        """Commit the batch without a row, unless it was committed: from now on nobody can."""
        self.write(spec, delta.small_frame(self.spark, spec, []))

    def tally(
        self, commit: delta.Commit, spec: TableSpec, starts: Sequence[int], measure: str = ""
    ) -> dict[int, Tally]:
        """Rows of the batch in a table by stretches of keys: counted there, not taken from a report.

        In the files that the commit has just put there; those of an older commit may have been rewritten since, so that
        batch is counted by its name in the whole table.

        Args:
            commit: the batch's, as `write` returned it.
            spec: the table.
            starts: the first key of every stretch; none of the batch's rows has a lower one.
            measure: a bigint column that is summed up; '' for none.

        Returns:
            By start.
        """
        if commit.skipped:
            return self._tally(self._rows(spec, f"batch_id = '{self.batch_id}'"), spec, starts, measure)
        columns = [*_place(spec), *([measure] if measure else [])]
        found = _by_start(np.array(sorted(starts), np.int64), new_rows(commit, columns), len(_place(spec)))
        return _sums(starts, (row for part in found for row in part.to_pylist()))

    def remove(self, spec: TableSpec, files: Sequence[LedgerFile], *, whole: bool) -> dict[int, int]:
        """Take the rows of these files out of a table by one commit, once.

        A run that was killed behind that commit finds what it removed in the log.

        Args:
            spec: the table; the batch is committed to it, or sealed.
            files: of the batch, by ordinal; the same ones whenever it is tried again.
            whole: they are all of the batch's.

        Returns:
            Rows that were removed, by ordinal.
        """
        app = f"headrace-withdraw-{self.batch_id}-{files[0].ordinal}"
        mine = f"batch_id = '{self.batch_id}'" + ("" if whole else f" AND ({are_of(spec, files)})")
        starts = {file.ordinal << LINE_BITS: file.ordinal for file in files}
        found = self._tally(self._rows(spec, mine), spec, list(starts))
        counts = {str(starts[start]): tally.rows for start, tally in found.items() if tally.rows}
        # No row is there: there never was one, or it is done, and who did it wrote down how many they were.
        done = self._replace(spec, mine, app, counts) if counts else delta.metadata_of_txn(spec.path(self.lake), app, 1)
        return {int(ordinal): rows for ordinal, rows in (done or {}).get(_REMOVED, {}).items()}

    def _replace(self, spec: TableSpec, where: str, app: str, counts: dict[str, int]) -> dict[str, Any]:
        nothing = delta.small_frame(self.spark, spec, [])
        options = delta.WriteOptions(replace_where=where, txn=(app, 1), quality=False)
        metadata = {_REMOVED: counts}
        return delta.write(
            nothing, spec, self.lake, mode="overwrite", metadata=metadata, batch_id=self.batch_id, options=options
        ).metadata

    def _rows(self, spec: TableSpec, where: str) -> DataFrame:
        return delta.read(self.spark, spec, self.lake).where(where)

    def _tally(self, rows: DataFrame, spec: TableSpec, starts: Sequence[int], measure: str = "") -> dict[int, Tally]:
        """By the workers."""
        firsts, place = np.array(sorted(starts), np.int64), _place(spec)

        def by_start(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return _by_start(firsts, batches, len(place))

        columns = [*place, *([measure] if measure else [])]
        found = rows.select(*columns).mapInArrow(by_start, "start bigint, rows bigint, measure bigint")
        return _sums(starts, found.toArrow().to_pylist())


def new_rows(commit: delta.Commit, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of the files that a commit added, a bounded piece at a time."""
    log = Log(commit.path)
    for file in log.added_at(commit.version):
        with log.store.open(file.path) as stream:
            yield from pq.ParquetFile(stream).iter_batches(1 << 16, columns=list(columns))


def _place(spec: TableSpec) -> tuple[str, ...]:
    """The columns that say where a row was: the key, or the file's ordinal, and the line where there is one."""
    if spec.layer != "quarantine":
        return ("key",)
    return ("file_ordinal", "line") if any(column.name == "line" for column in spec.columns) else ("file_ordinal",)


def are_of(spec: TableSpec, files: Sequence[LedgerFile]) -> str:
    """SQL: the row is of one of these files; by stretches of ordinals, since a batch may have 100,000 files."""
    name, bits = ("file_ordinal", 0) if spec.layer == "quarantine" else ("key", LINE_BITS)
    stretches = _stretches(sorted(file.ordinal for file in files))
    return " OR ".join(f"({name} >= {first << bits} AND {name} < {behind << bits})" for first, behind in stretches)


def _stretches(ordinals: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers among ascending ones: the first, and the one behind the last."""
    numbers = np.array(ordinals, np.int64)
    firsts, lasts = np.diff(numbers, prepend=numbers[0] - 2) > 1, np.diff(numbers, append=numbers[-1] + 2) > 1
    return list(zip(numbers[firsts].tolist(), (numbers[lasts] + 1).tolist(), strict=True))


def _keys(rows: pa.RecordBatch, place: int) -> npt.NDArray[np.int64]:
    """Keys, from the first `place` columns: the key itself, or ordinal (and line)."""
    first = rows.column(0).to_numpy().astype(np.int64, copy=False)
    if rows.schema.names[0] == "key":
        return first
    keys: npt.NDArray[np.int64] = first << LINE_BITS
    return keys if place == 1 else keys + rows.column(1).to_numpy()


def _by_start(starts: npt.NDArray[np.int64], batches: Iterable[pa.RecordBatch], place: int) -> Iterator[pa.RecordBatch]:
    """start, rows, measure of the stretches that have rows; the measure is the column behind the place, if any."""
    rows, measure = np.zeros((2, len(starts)), np.int64)
    for each in batches:
        at = np.searchsorted(starts, _keys(each, place), side="right") - 1
        rows += np.bincount(at, minlength=len(starts))
        if each.num_columns > place:
            np.add.at(measure, at, each.column(place).to_numpy())
    (found,) = np.nonzero(rows)
    columns = [pa.array(values[found]) for values in (starts, rows, measure)]
    yield pa.RecordBatch.from_arrays(columns, ["start", "rows", "measure"])


def _sums(starts: Sequence[int], found: Iterable[dict[str, int]]) -> dict[int, Tally]:
    totals = dict.fromkeys(starts, Tally(0, 0))
    for row in found:
        before = totals[row["start"]]
        totals[row["start"]] = Tally(before.rows + row["rows"], before.measure + row["measure"])
    return totals
