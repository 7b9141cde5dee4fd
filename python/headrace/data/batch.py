"""Batches rendered from a table's description: which columns become which tensor is said by TableSpec.tensors alone.

A tensor of several columns lies column after column in memory, from Parquet to the model: every copy on the way is one
of contiguous runs, a column of ids is contiguous for its embedding table, and matrix products take the layout as it is
([B, C] with strides (1, B): use reshape, not view). Ids wait as the file's int32 and are cast on the way into a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from headrace.catalog.spec import ELEMENTS, FROM_COMMIT
from headrace.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.catalog.spec import Column, TableSpec

Array = npt.NDArray[Any]

LABEL, KEY = "label", "key"
PAD_KEY = -1


@dataclass(frozen=True)
class TensorLayout:
    """How one tensor of a batch is made of a table's columns.

    Args:
        name: of the tensor.
        columns: scalar columns, side by side; or one column, scalar, a list of fixed length, or bytes.
        dtype: of the tensor.
        shape: of one row: (number of columns,) for several, () for one scalar column, the cell's shape otherwise.
        element: where cells are bytes, the type of the numbers in them, little-endian.
    """

    name: str
    columns: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    element: np.dtype[Any] | None = None

    @property
    def stacked(self) -> bool:
        """Several scalar columns, held as [columns, rows]."""
        return len(self.columns) > 1

    def hold(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> Array:
        """The chosen rows of one row group.

        Args:
            table: the row group with (at least) this tensor's columns.
            rows: [n] which rows, in which order.

        Returns:
            [columns, n] where several columns are stacked, else [n, *shape], in the file's own type.
        """
        if not self.stacked:
            return self._values(table, self.columns[0])[rows]
        columns = [self._values(table, name) for name in self.columns]
        held = np.empty((len(columns), len(rows)), dtype=np.result_type(*columns))
        for row, column in zip(held, columns, strict=True):
            row[:] = column[rows]
        return held

    def empty(self, rows: int) -> Array:
        """Room for a batch of this tensor: [columns, rows] or [rows, *shape] as in `hold`, not initialized."""
        return np.empty((*self.shape, rows) if self.stacked else (rows, *self.shape), dtype=self.dtype)

    def put(self, batch: Array, at: int, held: Array, start: int, stop: int) -> None:
        """Copy places [start, stop) of a held group to row `at` and on of a batch, casting to the tensor's type."""
        end = at + stop - start
        if self.stacked:
            batch[:, at:end] = held[:, start:stop]
        else:
            batch[at:end] = held[start:stop]

    def pad(self, batch: Array, where: npt.NDArray[np.bool_]) -> None:
        """Fill the rows of a batch that are padding: zeros, and PAD_KEY for the key."""
        (batch.T if self.stacked else batch)[where] = PAD_KEY if self.name == KEY else 0

    def tensor(self, batch: Array) -> torch.Tensor:
        """A filled batch as [B, *shape], sharing its memory."""
        return torch.from_numpy(batch.T if self.stacked else batch)

    def _values(self, table: pa.Table, name: str) -> Array:
        column = table.column(name).combine_chunks()
        if column.null_count:
            raise UserError(
                f"column {name} holds {column.null_count} nulls", "training needs every cell filled: see jobs/featurize"
            )
        if self.element is not None:
            return _cells(column, self.element, self.shape)
        if self.shape and not self.stacked:
            flat = column.flatten().to_numpy(zero_copy_only=False)
            if len(flat) != len(column) * math.prod(self.shape):
                raise UserError(f"column {name} holds lists that are not of shape {self.shape}", "rewrite the table")
            return flat.reshape(len(column), *self.shape)
        values: Array = column.to_numpy(zero_copy_only=False)
        return values


def _cells(column: pa.Array, element: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A binary column as [rows, *shape], a view of its buffer."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    size = math.prod(shape) * element.itemsize
    if (np.diff(offsets) != size).any():
        raise UserError(f"cells are not of {size} bytes, {shape} of {element}", "rewrite the table")
    if not len(column):
        return np.empty((0, *shape), element)
    data = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    return data.view(element).reshape(len(column), *shape)


def layouts(spec: TableSpec, metadata: Mapping[str, Any] | None = None) -> tuple[TensorLayout, ...]:
    """The layout of every tensor of a table.

    Args:
        spec: the table.
        metadata: that of the pinned version, which says what is in cells that the spec leaves to the commit.

    Raises:
        UserError: the table has no tensor, none called "key", or one made of a partition column (not in the files).
    """
    columns = {column.name: column for column in spec.columns}
    if KEY not in {tensor.name for tensor in spec.tensors}:
        raise UserError(f"table {spec.name} has no tensor {KEY!r}", "add it in data_catalog/: it is what is proved")
    made = []
    for tensor in spec.tensors:
        lost = [name for name in tensor.columns if name not in columns or name in spec.partition_by]
        if lost:
            raise UserError(
                f"tensor {tensor.name!r} of {spec.name} needs {', '.join(lost)}, not among the columns in its files",
                "name other columns under tensors: in data_catalog/",
            )
        element: np.dtype[Any] | None = None
        shape: tuple[int, ...] = (len(tensor.columns),)
        if len(tensor.columns) == 1:
            element, shape = _cell(columns[tensor.columns[0]], spec, metadata or {})
        made.append(TensorLayout(tensor.name, tuple(tensor.columns), np.dtype(tensor.dtype), shape, element))
    return tuple(made)


def _cell(column: Column, spec: TableSpec, metadata: Mapping[str, Any]) -> tuple[np.dtype[Any] | None, tuple[int, ...]]:
    """What a column's cell holds: the type of the numbers in its bytes (None where it has no bytes), and its shape."""
    if column.element != FROM_COMMIT:
        return _little(column.element) if column.element else None, column.shape
    said = metadata.get("cells", {}).get(column.name, {})
    sizes = said.get("shape", "?")
    if said.get("element") not in ELEMENTS or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(
            f"the commit of {spec.name} does not say what the cells of {column.name} hold",
            "pin a version that headrace wrote, or write the table again",
        )
    return _little(said["element"]), tuple(sizes)


def _little(element: str) -> np.dtype[Any]:
    return np.dtype(element).newbyteorder("<")


@dataclass(frozen=True)
class Batch:
    """The rows of one step on one rank, as named tensors.

    Args:
        tensors: by name, each [B, ...]; always with "key" [B] int64.
        mask: [B] bool, False where a row is padding; None where all rows are real.
        step: the step of the epoch that the batch belongs to.
        fingerprint: ordered hash of the keys; those of all ranks add up (modulo 2^64) to the global batch's.
    """

    tensors: dict[str, torch.Tensor]
    mask: torch.Tensor | None = None
    step: int = 0
    fingerprint: int = 0

    def __len__(self) -> int:
        return len(self.tensors[KEY])

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def rows(self) -> int:
        """Rows that are not padding."""
        return len(self) if self.mask is None else int(self.mask.sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        tensors = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors.items()}
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return replace(self, tensors=tensors, mask=mask)

    def inputs(self) -> dict[str, torch.Tensor]:
        """What a model sees: every tensor but the label and the key."""
        return {name: tensor for name, tensor in self.tensors.items() if name not in (LABEL, KEY)}
