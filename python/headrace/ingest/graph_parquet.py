"""Columns of Parquet files as a graph's edges, features or labels; of each column, which rows hold no such thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.ingest.named_lines import SPLITS

Bad = list[tuple[npt.NDArray[np.bool_], str]]
LABELS = {"label": pa.int64(), "split": pa.string(), "year": pa.int32()}


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
    """Ids as bigint; null and negative ones are no ids."""
    unsigned = pa.types.is_uint64(column.type)
    values = column.fill_null(0).to_numpy(False)
    bad: Bad = [(column.is_null().to_numpy(False), f"{word} is missing")]
    bad.append(
        (values > np.uint64(1 << 63) - 1, f"{word} overflows 64 bits")
        if unsigned
        else (values < 0, f"{word} is negative")
    )
    return pa.array(values.astype(np.int64)), bad


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


def _parquet_labels(columns: dict[str, Any], count: int, named: bool) -> tuple[pa.Table, Bad]:
    nodes, bad = _parquet_nodes(columns, count, named)
    made: dict[str, Any] = {name: pa.nulls(count, type_) for name, type_ in LABELS.items()}
    for name in ("label", "year"):
        if name in columns:
            made[name] = pc.cast(columns[name], LABELS[name], safe=False)
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
