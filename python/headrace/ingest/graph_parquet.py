"""Columns of Parquet files as a graph's edges, features or labels; of each column, which rows hold no such thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.errors import UserError
from headrace.ingest.named_lines import SPLITS

Bad = list[tuple[npt.NDArray[np.bool_], str]]
LABELS = {"label": pa.int64(), "split": pa.string(), "year": pa.int32()}


def check_types(path: str, columns: Sequence[tuple[str, str]], named: bool) -> None:
    """Refuse a file whose columns cannot hold what they are taken for.

    Args:
        path: a Parquet file.
        columns: (what it is, its name in the file).
        named: nodes are names.

    Raises:
        UserError: with the column, its type and what is needed.
    """
    schema = pq.read_schema(path)
    for what, column in columns:
        needed, fits = _NAMES if what == "node" and named else _TYPES.get(what, _IDS)
        type_ = schema.field(column).type
        if not fits(type_):
            raise UserError(
                f"{path}: column {column} ({what}) is of type {type_}; {needed} is needed", "--columns names others"
            )


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _is_list(type_: pa.DataType) -> bool:
    lists = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return lists and _is_number(type_.value_type)


_IDS = ("a number", _is_number)
_NAMES = ("text or a number", lambda type_: _is_text(type_) or pa.types.is_integer(type_))
_TYPES = {"relation": _NAMES, "split": ("text", _is_text), "features": ("a list of numbers", _is_list)}


def _parquet_edges(columns: dict[str, Any], count: int, named: bool) -> tuple[pa.Table, Bad]:
    bad: Bad = []
    made = {}
    for name, word in (("src", "source"), ("dst", "target")):
        made[name], wrong = _ids(columns[name], word)
        bad += wrong
    if "weight" in columns:
        made["weight"] = pc.cast(columns["weight"], pa.float64(), safe=False)
        finite = made["weight"].is_valid().to_numpy(False) & np.isfinite(made["weight"].fill_null(0).to_numpy(False))
        bad.append((~finite, "weight is not a finite number"))
    if "relation" in columns:
        made["relation"] = pc.cast(columns["relation"], pa.string())
        bad.append((pc.fill_null(pc.equal(made["relation"], ""), True).to_numpy(False), "relation is empty"))
    return pa.table(made), bad


def _ids(column: pa.Array, word: str) -> tuple[pa.Array, Bad]:
    """Ids as bigint; null, negative ones and fractions are no ids."""
    missing = column.is_null().to_numpy(False)
    values, nan, bad = whole(column.fill_null(0).to_numpy(False), word)
    bad += [(missing | nan, f"{word} is missing"), (values < 0, f"{word} is negative")]
    return pa.array(values), bad


def whole(values: npt.NDArray[Any], name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], Bad]:
    """Numbers that must be whole: as int64, which are missing (NaN), which are neither."""
    if values.dtype.kind != "f":
        overflow = values > np.iinfo(np.int64).max if values.dtype.kind == "u" else np.zeros(len(values), bool)
        return values.astype(np.int64), np.zeros(len(values), bool), [(overflow, f"{name} overflows 64 bits")]
    wide = values.astype(np.float64)
    missing = np.isnan(wide)
    wrong = ~missing & (~np.isfinite(wide) | (np.abs(np.where(missing, 0, wide)) >= 1 << 53) | (wide != np.floor(wide)))
    return np.where(missing | wrong, 0, wide).astype(np.int64), missing, [(wrong, f"{name} is not a whole number")]


def _parquet_nodes(columns: dict[str, Any], count: int, named: bool) -> tuple[dict[str, Any], Bad]:
    if named:
        names = pc.cast(columns["node"], pa.string())
        bad = [(pc.fill_null(pc.equal(names, ""), True).to_numpy(False), "name is empty")]
        return {"node": pa.nulls(count, pa.int64()), "name": names}, bad
    nodes, wrong = _ids(columns["node"], "node")
    return {"node": nodes, "name": pa.nulls(count, pa.string())}, wrong


def _parquet_features(columns: dict[str, Any], count: int, named: bool) -> tuple[pa.Table, Bad]:
    nodes, bad = _parquet_nodes(columns, count, named)
    lists = columns["features"]
    dtype = "float16" if pa.types.is_float16(lists.type.value_type) else "float32"
    stored = "<f2" if dtype == "float16" else "<f4"
    cells = [cell.values.to_numpy(False).astype(stored) if cell.is_valid else None for cell in lists]
    wrong = np.array([cell is None or not np.isfinite(cell).all() for cell in cells], bool)
    bad.append((wrong, "a feature's value is not a finite number"))
    values = [b"" if cell is None else cell.tobytes() for cell in cells]
    made = {"dim": pa.array([0 if cell is None else len(cell) for cell in cells], pa.int32())}
    return pa.table(nodes | made | {"dtype": pa.array([dtype] * count), "values": pa.array(values, pa.binary())}), bad


def _numbers(column: pa.Array, name: str) -> tuple[pa.Array, Bad]:
    """A label or year; null and NaN are none."""
    values, nan, bad = whole(column.fill_null(0).to_numpy(False), name)
    if pa.types.is_int32(LABELS[name]):
        bad.append(((values < -(1 << 31)) | (values >= 1 << 31), f"{name} is out of range"))
        values = np.where(bad[-1][0], 0, values).astype(np.int32)
    return pa.array(values, LABELS[name], mask=nan | column.is_null().to_numpy(False)), bad


def _parquet_labels(columns: dict[str, Any], count: int, named: bool) -> tuple[pa.Table, Bad]:
    nodes, bad = _parquet_nodes(columns, count, named)
    made: dict[str, Any] = {name: pa.nulls(count, type_) for name, type_ in LABELS.items()}
    for name in ("label", "year"):
        if name in columns:
            made[name], wrong = _numbers(columns[name], name)
            bad += wrong
    if "label" in columns:
        bad.append((pc.fill_null(pc.less(made["label"], 0), False).to_numpy(False), "label is negative"))
    if "split" in columns:
        words = [
            None if word is None else SPLITS.get(word.strip().lower(), "unknown")
            for word in columns["split"].to_pylist()
        ]
        bad.append((np.array([word == "unknown" for word in words], bool), "split is none of train, validation, test"))
        made["split"] = pa.array(words, pa.string())
    return pa.table(nodes | made), bad


PARQUET: dict[str, Callable[[dict[str, Any], int, bool], tuple[pa.Table, Bad]]] = {
    "edges": _parquet_edges,
    "features": _parquet_features,
    "labels": _parquet_labels,
}
