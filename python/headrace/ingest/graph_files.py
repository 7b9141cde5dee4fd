"""Files of a graph as a `Source`: each with a format and with what its rows are called, both kept in the ledger.

Graph, node types, relation and split of a file are the same for all its rows: they are no part of what workers parse,
Spark adds them as constants.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.catalog.ledger import FileAccount, LedgerBatch, LedgerFile
from headrace.catalog.spec import load
from headrace.errors import UserError
from headrace.ingest.commit import commit_batch
from headrace.ingest.edges import EdgeFormat
from headrace.ingest.graph_arrays import RowFormat, check_array, holds_rows, range_rows, scan_rows
from headrace.ingest.graph_parquet import check_types
from headrace.ingest.lines import (
    MAX_LINES,
    RANGE_BYTES,
    REJECTED_SCHEMA,
    InputFile,
    Part,
    ddl,
    inputs,
    pack,
    per_task,
    read_lines,
    scan_files,
)
from headrace.ingest.named_lines import NamedFormat
from headrace.ingest.npy import open_array
from headrace.ingest.textfiles import BrokenFileError, FileScan

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TABLES = ("edges", "triples", "node_features", "node_labels")
_SCAN_HERE_BYTES = 16 << 20
Format = EdgeFormat | NamedFormat | RowFormat
_FORMATS: dict[str, type[Any]] = {"edges": EdgeFormat, "named": NamedFormat, "rows": RowFormat}


@dataclass(frozen=True)
class FilePlan:
    """How one file is read.

    Args:
        format: of its lines or rows.
        constants: columns that are the same in all its rows (graph, relation, ...).
        header: so many first lines are no rows.
    """

    format: Format
    constants: dict[str, str]
    header: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the ledger."""
        reader = next(name for name, type_ in _FORMATS.items() if isinstance(self.format, type_))
        return {
            "reader": reader,
            "format": dataclasses.asdict(self.format),
            "constants": self.constants,
            "header": self.header,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FilePlan:
        """The inverse of `to_json`."""
        if value["reader"] == "rows":
            made: Format = RowFormat.from_json(value["format"])
        else:
            made = _FORMATS[value["reader"]](**value["format"])
        return cls(made, dict(value["constants"]), value["header"])


class GraphFiles:
    """A `Source` of a graph's files that go to one table.

    Args:
        name: edges, triples, node_features or node_labels.
        plan: how a scanned file is to be read; raises UserError where it can not be.
        binary: files that are to be arrays or Parquet; others are where they begin like one, so that a run of text
            files finishes a batch of arrays as well.
        range_bytes: about how much of a file one task reads.
    """

    def __init__(
        self,
        name: str,
        plan: Callable[[FileScan], FilePlan],
        *,
        binary: Collection[str] = (),
        range_bytes: int = RANGE_BYTES,
    ) -> None:
        self.name, self._plan, self._binary, self._range_bytes = name, plan, frozenset(binary), range_bytes

    def scan(self, spark: SparkSession, paths: Sequence[str]) -> dict[str, FileScan | str]:
        """One pass over each file."""
        binary = {path: path in self._binary or holds_rows(path) for path in paths}
        lines = [path for path in paths if not binary[path]]
        found = scan_files(spark, lines, self._range_bytes)
        return found | self._scan_rows(spark, [path for path in paths if binary[path]])

    def _scan_rows(self, spark: SparkSession, paths: Sequence[str]) -> dict[str, FileScan | str]:
        if sum(os.path.getsize(path) for path in paths if os.path.exists(path)) <= _SCAN_HERE_BYTES:
            return {path: scan_rows(path, self._range_bytes, pairs=self.name == "edges") for path in paths}
        rows = per_task(
            spark,
            len(paths),
            _scan_task(list(paths), self._range_bytes, self.name == "edges"),
            "path string, scan string, error string",
        )
        found = rows.collect()
        return {row.path: FileScan.from_json(json.loads(row.scan)) if row.scan else row.error for row in found}

    def check(self, scans: Sequence[FileScan]) -> None:
        """Refuse files that cannot be what is asked for."""
        for found in scans:
            if found.lines >= MAX_LINES:
                raise UserError(f"{found.path} has {MAX_LINES} rows or more", "split it")
            format_ = self._plan(found).format
            if not isinstance(format_, RowFormat) and holds_rows(found.path):
                raise UserError(f"{found.path} is an array or Parquet file, no text", "--format auto, npy or parquet")
            if isinstance(format_, RowFormat) and found.head == b"PAR1":
                check_types(found.path, format_.columns, format_.named)
            elif isinstance(format_, RowFormat):
                _check_array(found.path, format_)

    def detail(self, scan: FileScan) -> dict[str, Any]:
        """How it is read, for the ledger."""
        return {"lines": scan.lines} | self._plan(scan).to_json()

    def commit(
        self, spark: SparkSession, lake: str, batch: LedgerBatch, scans: Mapping[str, FileScan]
    ) -> dict[str, FileAccount]:
        """See `Source.commit`."""
        plans = {file.path: FilePlan.from_json(file.detail) for file in batch.files}
        return commit_batch(spark, lake, batch.batch_id, inputs(batch, scans), _GraphRows(self.name, plans))

    def describe(self, file: LedgerFile, account: FileAccount) -> str:
        """Path, rows, what they are called."""
        named = "/".join(value for key, value in file.detail["constants"].items() if key != "graph")
        header = file.detail.get("header", 0)
        return (
            f"{file.path}: {account.read:,} rows = {account.committed:,} committed + {account.quarantined:,} in"
            f" quarantine ({named})" + (f", {header:,} lines of comments or names left out" if header else "")
        )


@dataclass(frozen=True)
class _GraphRows:
    """The rows of a batch, for `commit_batch`."""

    name: str
    plans: dict[str, FilePlan]

    def read(self, spark: SparkSession, files: Sequence[InputFile], part: Part) -> DataFrame:
        """Files that are read alike together; the others beside them."""
        groups: dict[str, list[InputFile]] = {}
        for file in files:
            plan = dataclasses.replace(self.plans[file.scan.path], header=0)
            groups.setdefault(json.dumps(plan.to_json(), sort_keys=True), []).append(file)
        frames = [self._group(spark, group, part) for group in groups.values()]
        return functools.reduce(lambda a, b: a.unionByName(b), frames)

    def _group(self, spark: SparkSession, files: Sequence[InputFile], part: Part) -> DataFrame:
        plan = self.plans[files[0].scan.path]
        if isinstance(plan.format, RowFormat):
            tasks = pack(files)
            schema = plan.format.schema if part == "accepted" else REJECTED_SCHEMA
            frame = per_task(spark, len(tasks), _read_task(tasks, plan.format, part), ddl(schema))
        else:
            frame = read_lines(spark, files, plan.format, part)
        return frame if part == "rejected" else _complete(frame, plan.constants, self.name)


def _complete(frame: DataFrame, constants: Mapping[str, str], name: str) -> DataFrame:
    """The table's other columns: constants, and null for what these files do not tell."""
    from pyspark.sql import functions as F

    types = {field.name: field.dataType for field in load(f"bronze/{name}").to_spark().fields}
    for column, type_ in types.items():
        if column in constants:
            frame = frame.withColumn(column, F.lit(constants[column]))
        elif column not in frame.columns and column != "batch_id":
            value = "float32" if column == "dtype" else None
            frame = frame.withColumn(column, F.lit(value).cast(type_))
    return frame


def _read_task(tasks: list[Any], fmt: RowFormat, part: Part) -> Callable[[int], Iterator[pa.RecordBatch]]:
    def run(task: int) -> Iterator[pa.RecordBatch]:
        for file, piece in tasks[task]:
            yield from range_rows(file, piece, fmt, part)

    return run


def _scan_task(paths: list[str], range_bytes: int, pairs: bool) -> Callable[[int], Iterator[pa.RecordBatch]]:
    def run(task: int) -> Iterator[pa.RecordBatch]:
        found = scan_rows(paths[task], range_bytes, pairs=pairs)
        scan, error = (None, found) if isinstance(found, str) else (json.dumps(found.to_json()), "")
        columns = [pa.array([value], pa.string()) for value in (paths[task], scan, error)]
        yield pa.RecordBatch.from_arrays(columns, names=["path", "scan", "error"])

    return run


def _check_array(path: str, fmt: RowFormat) -> None:
    try:
        reason = check_array(open_array(path), fmt)
    except BrokenFileError as problem:
        reason = str(problem)
    if reason:
        raise UserError(reason, "name the right files, or --kind edges, features or labels")
