"""The row groups of a pinned table version, from the Parquet footers, with everything refused that must be.

Petastorm keeps its schema and indexes as pickles in the footer and loads them from whoever wrote the file: a file with
such a key is refused here, before Petastorm opens it. Nothing in a footer is ever executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.data.batch import TensorLayout
from headrace.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from headrace.catalog.log import DataFile
    from headrace.catalog.pinned import PinnedTable

PICKLED_KEYS = b"dataset-toolkit."
_THREADS = 8


@dataclass(frozen=True)
class RowGroup:
    """A row group of a data file."""

    path: str
    index: int
    rows: int


def row_groups(table: PinnedTable, tensors: Iterable[TensorLayout]) -> tuple[RowGroup, ...]:
    """Every row group of the version, in the order of its file list. One footer at a time is held by each thread.

    Raises:
        UserError: a file is missing, damaged, not the one that was committed, of another schema, or holds pickles.
    """
    chosen = tuple(tensors)

    def read(file: DataFile) -> list[RowGroup]:
        footer = _footer(file, table)
        _check_schema(file.path, footer.schema.to_arrow_schema(), chosen)
        return [RowGroup(file.path, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]

    with ThreadPoolExecutor(_THREADS) as pool:
        return tuple(group for groups in pool.map(read, table.files) for group in groups)


def _footer(file: DataFile, table: PinnedTable) -> pq.FileMetaData:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not os.path.isfile(file.path):
        raise UserError(
            f"{file.path} of {table.spec.name} version {table.version} is not there",
            "the version was vacuumed, or the lake moved: pin a newer version, or check --lake",
        )
    try:
        footer = pq.read_metadata(file.path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.path} is not a readable Parquet file: {error}", "restore it from a backup") from None
    pickles = [key.decode(errors="replace") for key in footer.metadata or {} if key.startswith(PICKLED_KEYS)]
    if pickles:
        raise UserError(
            f"{file.path} holds pickled objects in its footer ({', '.join(sorted(pickles))}); loading them runs code",
            "write the table with headrace or Spark, not with Petastorm's materialize_dataset",
        )
    if file.rows != footer.num_rows:
        raise UserError(
            f"{file.path} holds {footer.num_rows} rows, {file.rows} were committed", "restore the file from a backup"
        )
    return footer


def _check_schema(path: str, schema: pa.Schema, tensors: tuple[TensorLayout, ...]) -> None:
    for tensor in tensors:
        for name in tensor.columns:
            if name not in schema.names:
                raise UserError(f"{path} has no column {name}", "write the table again with its current description")
            kind = schema.field(name).type
            if not _fits(kind, tensor):
                raise UserError(
                    f"column {name} of {path} is {kind}, tensor {tensor.name!r} is {tensor.dtype}",
                    "correct the dtype under tensors: in data_catalog/, or the column's type",
                )


def _fits(kind: pa.DataType, tensor: TensorLayout) -> bool:
    """Whether the column's type can become the tensor's without a wrong value: ints only to wider ints or floats."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or tensor.element is not None:
        if not pa.types.is_binary(kind) or tensor.element is None:
            return False
        return np.can_cast(
            tensor.element, tensor.dtype, "same_kind" if np.issubdtype(tensor.dtype, np.floating) else "safe"
        )
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        if tensor.stacked or not tensor.shape:
            return False
        kind = kind.value_type
    elif tensor.shape and not tensor.stacked:
        return False
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return False
    if np.issubdtype(tensor.dtype, np.floating):
        return np.can_cast(kind.to_pandas_dtype(), tensor.dtype, "same_kind")
    return np.can_cast(kind.to_pandas_dtype(), tensor.dtype, "safe")
