"""The transform of rows in numpy: the one place where cells become numbers, in Spark, in scoring and in the pyfunc."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.errors import UserError
from headrace.features.hashing import bucket_of
from headrace.features.transform import (
    CATEGORIES,
    FIRST_ID,
    INTS,
    MISSING_ID,
    MISSING_LOG,
    MISSING_QUANTILE,
    UNKNOWN_ID,
    Transform,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Cells = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""A column of a block of rows: values int64 [N] (anything where missing) and missing bool [N]."""

_HEX = np.full(256, 255, np.uint8)
for _base, _digits in ((0, b"0123456789"), (10, b"abcdef"), (10, b"ABCDEF")):
    for _i, _digit in enumerate(_digits):
        _HEX[_digit] = _base + _i


class Vocabulary:
    """Ids by value for every column that has a vocabulary: one sorted array of values and one of ids, cut by column.

    Twelve bytes an entry; `save` and `open` keep it in a file that processes of one machine map and share.
    """

    def __init__(
        self, values: npt.NDArray[np.int64], ids: npt.NDArray[np.int32], spans: Mapping[str, tuple[int, int]]
    ) -> None:
        self.values, self.ids, self.spans = values, ids, dict(spans)

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Vocabulary:
        """Build from columns `column`, `value`, `id`, in any order of rows.

        Raises:
            ValueError: a value or an id twice in one column, or an id under 3.
        """
        column = table["column"].combine_chunks().dictionary_encode()
        names = column.dictionary.to_pylist()
        rank = np.argsort(np.argsort(names)) if names else np.zeros(0, int)
        codes = rank[column.indices.to_numpy()].astype(np.int32) if len(table) else np.zeros(0, np.int32)
        values = table["value"].to_numpy().astype(np.int64, copy=False)
        order = np.lexsort((values, codes))
        codes, values, ids = codes[order], values[order], table["id"].to_numpy().astype(np.int32)[order]
        if np.any((np.diff(values) == 0) & (np.diff(codes) == 0)) or np.any(ids < FIRST_ID):
            raise ValueError("a vocabulary holds a value twice, or an id under 3")
        bounds = np.searchsorted(codes, np.arange(len(names) + 1))
        return cls(values, ids, {n: (int(bounds[i]), int(bounds[i + 1])) for i, n in enumerate(sorted(names))})

    def to_arrow(self) -> pa.Table:
        """Columns `column`, `value`, `id`, by column and value."""
        import pyarrow as pa

        spans = sorted(self.spans.items(), key=lambda item: item[1])
        codes = np.repeat(np.arange(len(spans), dtype=np.int32), [b - a for _, (a, b) in spans])
        names = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([n for n, _ in spans], pa.string()))
        return pa.table({"column": names, "value": np.asarray(self.values), "id": np.asarray(self.ids)})

    def save(self, path: str | Path) -> None:
        """Write an Arrow file that `open` maps into memory."""
        import pyarrow as pa

        table = pa.table({"value": np.asarray(self.values), "id": np.asarray(self.ids)})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            for batch in table.to_batches(max_chunksize=max(1, len(self))):
                writer.write_batch(batch)

    @classmethod
    def open(cls, path: str | Path, spans: Mapping[str, tuple[int, int]]) -> Vocabulary:
        """Map the file that `save` wrote; no copy is made."""
        import pyarrow as pa

        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        return cls(table["value"].to_numpy(), table["id"].to_numpy(), spans)

    def lookup(self, column: str, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Ids of values int64 [N] as int32 [N]; 2 for what the column does not know."""
        start, stop = self.spans.get(column, (0, 0))
        if start == stop:
            return np.full(len(values), UNKNOWN_ID, np.int32)
        known = self.values[start:stop]
        at = np.searchsorted(known, values)
        at[at == len(known)] = 0
        return np.where(known[at] == values, self.ids[start:stop][at], np.int32(UNKNOWN_ID)).astype(np.int32)


class RowTransform:
    """Raw cells in, model inputs out.

    Args:
        transform: what to do.
        vocabulary: ids by value; needed where a column's rule is `vocabulary`.
    """

    def __init__(self, transform: Transform, vocabulary: Vocabulary | None = None) -> None:
        if transform.vocabulary_columns() and vocabulary is None:
            raise ValueError("this transform needs its vocabulary")
        self.transform, self.vocabulary = transform, vocabulary
        self._cuts = {name: np.asarray(cuts, np.float64) for name, cuts in transform.boundaries.items()}

    @classmethod
    def from_directory(cls, folder: str | Path) -> RowTransform:
        """Open the transform of a model's directory: `transform` in model.json, and vocabulary.parquet."""
        import json

        import pyarrow.parquet as pq

        config = Path(folder) / "model.json"
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{config}: {error}", "name the directory of a trained model") from None
        transform = Transform.from_json(settings.get("transform"), str(config))
        if not transform.vocabulary_columns():
            return cls(transform)
        source = Path(folder) / "vocabulary.parquet"
        if not source.exists() and not _needs_entries(transform, settings):
            return cls(transform, Vocabulary(np.zeros(0, np.int64), np.zeros(0, np.int32), {}))
        try:
            table = pq.read_table(source, columns=["column", "value", "id"])
            return cls(transform, Vocabulary.from_arrow(table))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{source}: {str(error)[:500]}", "the model's directory is damaged: train again") from None

    def int_column(self, name: str, cells: Cells) -> npt.NDArray[np.float32]:
        """One int column as float32 [N]."""
        values, missing = cells
        x = values.astype(np.float64)
        if self.transform.ints == "log":
            y, absent = np.copysign(np.log1p(np.abs(x)), x), MISSING_LOG
        else:
            cuts = self._cuts[name]
            y, absent = (1.0 + np.searchsorted(cuts, x, side="left")) / (1.0 + len(cuts)), MISSING_QUANTILE
        return np.where(missing, absent, y).astype(np.float32)

    def category_column(self, name: str, cells: Cells) -> npt.NDArray[np.int32]:
        """One categorical column as ids int32 [N]."""
        values, missing = cells
        rule = self.transform.categories[name]
        if rule.kind == "hash":
            ids = (FIRST_ID + bucket_of(values, rule.num_ids - FIRST_ID)).astype(np.int32)
        elif rule.kind == "modulo":
            ids = (FIRST_ID + values % (rule.num_ids - FIRST_ID)).astype(np.int32)
        else:
            assert self.vocabulary is not None
            ids = self.vocabulary.lookup(name, values)
            # A vocabulary that has grown since holds ids that this transform's embedding tables have no row for.
            ids[ids >= rule.num_ids] = UNKNOWN_ID
        ids[missing] = MISSING_ID
        return ids

    def __call__(self, frame: pd.DataFrame) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Transform a block of raw rows.

        Args:
            frame: i1 .. i13 as whole numbers and c1 .. c26 as 1 to 8 hex digits or as whole numbers; a missing cell is
                None, NaN or an empty text. Other columns are ignored, any order will do.

        Returns:
            dense float32 [N, 13] and sparse int64 [N, 26].

        Raises:
            UserError: a column is not there, or a cell is neither of these.
        """
        absent = [name for name in INTS + CATEGORIES if name not in frame.columns]
        if absent:
            raise UserError(f"the rows have no column {', '.join(absent)}", "give i1 .. i13 and c1 .. c26")
        dense = np.empty((len(frame), len(INTS)), np.float32)
        sparse = np.empty((len(frame), len(CATEGORIES)), np.int64)
        for at, name in enumerate(INTS):
            dense[:, at] = self.int_column(name, pandas_cells(frame[name], name))
        for at, name in enumerate(CATEGORIES):
            sparse[:, at] = self.category_column(name, pandas_cells(frame[name], name, hexadecimal=True))
        return dense, sparse

    def inputs(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The same of an Arrow batch with bronze's columns."""
        dense = [self.int_column(name, arrow_cells(batch.column(name))) for name in INTS]
        sparse = [self.category_column(name, arrow_cells(batch.column(name))) for name in CATEGORIES]
        return np.stack(dense, 1), np.stack(sparse, 1).astype(np.int64)


def _needs_entries(transform: Transform, settings: Mapping[str, Any]) -> bool:
    """A model without categories, or of columns that hold no frequent value, is kept without a vocabulary."""
    model = settings.get("model")
    used = not isinstance(model, Mapping) or model.get("categories", True)
    return bool(used and any(transform.categories[n].num_ids > FIRST_ID for n in transform.vocabulary_columns()))


def arrow_cells(column: pa.Array) -> Cells:
    """The cells of an Arrow column of whole numbers."""
    import pyarrow.compute as pc

    missing = column.is_null().to_numpy(zero_copy_only=False)
    filled = pc.fill_null(column, 0) if column.null_count else column
    return filled.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), missing


def pandas_cells(column: pd.Series[Any], name: str, *, hexadecimal: bool = False) -> Cells:
    """The cells of a pandas column: whole numbers of any dtype, or texts of digits (hexadecimal ones for categories).

    Raises:
        UserError: a cell is no whole number; the message names column and row.
    """
    missing = column.isna().to_numpy(dtype=bool)
    if column.dtype.kind in "iu" or str(column.dtype).lower().startswith(("int", "uint")):
        return column.fillna(0).to_numpy(dtype=np.int64), missing
    if column.dtype.kind == "f":
        return _from_floats(column.to_numpy(np.float64, na_value=0.0), missing, name), missing
    cells = column.to_numpy(dtype=object)
    missing = missing | np.fromiter((isinstance(cell, str) and not cell for cell in cells), bool, len(cells))
    present = cells[~missing]
    values = np.zeros(len(cells), np.int64)
    if hexadecimal and len(present) and all(isinstance(cell, str) for cell in present):
        values[~missing] = _from_hex(present, name)
    else:
        values[~missing] = np.fromiter((_from_object(cell, name) for cell in present), np.int64, len(present))
    return values, missing


def _from_floats(x: npt.NDArray[np.float64], missing: npt.NDArray[np.bool_], name: str) -> npt.NDArray[np.int64]:
    """pandas turns ints with holes into floats; whole numbers below 2^53 come back exactly."""
    x = np.where(missing, 0.0, x)
    bad = np.flatnonzero(~((np.abs(x) < 2.0**53) & (x == np.floor(x))))
    if len(bad):
        raise UserError(f"column {name}, row {bad[0]}: {x[bad[0]]!r} is no whole number", "give ints, not floats")
    return x.astype(np.int64)


def _from_hex(texts: Iterable[str], name: str) -> npt.NDArray[np.int64]:
    """1 to 8 hex digits, as in the logs; fewer than 8 are as if zeros led."""
    cells = list(texts)
    digits = np.zeros((len(cells), 8), np.uint8)
    right = all(1 <= len(cell) <= 8 and cell.isascii() for cell in cells)
    if right:
        joined = "".join(cell.rjust(8, "0") for cell in cells).encode()
        digits = _HEX[np.frombuffer(joined, np.uint8)].reshape(-1, 8)
    if not right or (digits == 255).any():
        bad = next(cell for cell in cells if re.fullmatch(r"[0-9a-fA-F]{1,8}", cell, re.ASCII) is None)
        raise UserError(f"column {name}: {bad[:40]!r} is not 1 to 8 hex digits", "give the raw text of the log")
    return digits.astype(np.int64) @ (16 ** np.arange(7, -1, -1, dtype=np.int64))


def _from_object(cell: object, name: str) -> int:
    try:
        if isinstance(cell, float) and not cell.is_integer():
            raise ValueError
        value = int(cell)  # type: ignore[call-overload]
        if not -(2**63) <= value < 2**63:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        problem = f"column {name}: {str(cell)[:40]!r} is no whole number"
        raise UserError(problem, "give ints, None where missing") from None
    return int(value)
