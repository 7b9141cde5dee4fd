"""Arrays [n, 3] of (head, relation, tail), as WikiKG90Mv2 has them: read by ranges, told from pairs, or refused."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import UserError
from headrace.ingest.graph_arrays import RowFormat, check_array, range_rows, scan_rows
from headrace.ingest.graph_plan import Reading, ogb_files
from headrace.ingest.lines import InputFile
from headrace.ingest.npy import open_array
from headrace.ingest.textfiles import FileScan

HRT = (("src", "0"), ("relation", "1"), ("dst", "2"))


def read(path: Path, reading: Reading, range_bytes: int = 100) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What goes into the table and what is refused, by the plan that `reading` makes."""
    found = scan_rows(str(path), range_bytes, pairs=True)
    assert isinstance(found, FileScan), found
    plan = reading.plan(found)
    assert isinstance(plan.format, RowFormat) and "relation" not in plan.constants
    file = InputFile(found, 1, None)
    parts = []
    for part in ("accepted", "rejected"):
        batches = [b for piece in found.ranges for b in range_rows(file, piece, plan.format, part)]  # type: ignore[arg-type]
        parts.append([row for batch in batches for row in batch.to_pylist()])
    assert sum(map(len, parts)) == found.lines
    return parts[0], parts[1]


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("columns", ["hrt", "htr"])
def test_triples(tmp_path: Path, dtype: str, order: Any, columns: str) -> None:
    triples = np.random.default_rng(1).integers(0, 1_000, (50, 3))
    stored = triples if columns == "hrt" else triples[:, [0, 2, 1]]
    np.save(tmp_path / "train_hrt.npy", np.array(stored, dtype, order=order))
    reading = Reading("wiki", order=columns)
    assert reading.table_of(str(tmp_path / "train_hrt.npy")) == ("edges", True)
    accepted, rejected = read(tmp_path / "train_hrt.npy", reading)
    found = [(row["key"] & 0xFFFF, row["src"], row["relation"], row["dst"]) for row in accepted]
    assert found == [(k, h, str(r), t) for k, (h, r, t) in enumerate(triples.tolist())] and not rejected
    assert reading.plan(scanned(tmp_path / "train_hrt.npy")).constants["split"] == "train"


def scanned(path: Path) -> FileScan:
    found = scan_rows(str(path), 1 << 20, pairs=True)
    assert isinstance(found, FileScan)
    return found


def test_a_negative_number_in_any_column_is_refused(tmp_path: Path) -> None:
    triples = np.arange(30).reshape(10, 3)
    triples[2, 0], triples[4, 1], triples[6, 2] = -1, -2, -3
    np.save(tmp_path / "valid_hrt.npy", triples)
    accepted, rejected = read(tmp_path / "valid_hrt.npy", Reading("g"))
    assert len(accepted) == 7
    assert [(row["line"], row["reason"]) for row in rejected] == [
        (2, "source is negative"),
        (4, "relation is negative"),
        (6, "target is negative"),
    ]


def test_pairs_stay_pairs(tmp_path: Path) -> None:
    """[2, 3] is three edges, as OGB's edge_index has them; by the name of triples it is refused rather than guessed."""
    np.save(tmp_path / "edge_index.npy", np.arange(6).reshape(2, 3))
    np.save(tmp_path / "train_hrt.npy", np.arange(6).reshape(2, 3))
    pairs = scanned(tmp_path / "edge_index.npy")
    assert pairs.lines == 3 and Reading("g").plan(pairs).format == RowFormat("edges")
    with pytest.raises(UserError, match="no array"):
        Reading("g").plan(scanned(tmp_path / "train_hrt.npy"))


def test_what_is_no_array_of_triples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_hrt.npy"
    np.save(path, np.zeros((5, 3)))
    assert "edges are integers" in check_array(open_array(str(path)), RowFormat("edges", HRT))
    np.save(path, np.zeros((5, 4), np.int64))
    assert "[E, 3]" in check_array(open_array(str(path)), RowFormat("edges", HRT))
    np.save(path, np.zeros((5, 3), object), allow_pickle=True)
    found = scan_rows(str(path), 100, pairs=True)
    assert isinstance(found, str) and "pickled Python objects" in found
    path.write_bytes(pickle.dumps([(1, 2, 3)]))
    assert "is no numpy array file" in str(scan_rows(str(path), 100, pairs=True))


def test_memory_is_that_of_a_chunk_however_long_the_array(tmp_path: Path) -> None:
    path = tmp_path / "train_hrt.npy"
    count = 1_500_000
    array = np.lib.format.open_memmap(path, "w+", np.int64, (count, 3))
    array[:] = np.arange(count)[:, None] % 1_000
    array.flush()
    del array
    tracemalloc.start()
    found = scanned(path)
    plan = Reading("g").plan(found)
    assert isinstance(plan.format, RowFormat)
    rows = sum(
        b.num_rows
        for piece in found.ranges
        for b in range_rows(InputFile(found, 1, None), piece, plan.format, "accepted")
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == count and peak < 16 << 20 < path.stat().st_size, f"{peak:,} bytes"


def test_wikis_folder(tmp_path: Path) -> None:
    """WikiKG90Mv2's processed/: triples and features of entities are taken, the rest named; answers are no labels."""
    np.save(tmp_path / "train_hrt.npy", np.zeros((4, 3), np.int64))
    np.save(tmp_path / "entity_feat.npy", np.zeros((4, 2), np.float16))
    for name, width in (("val_hr", 2), ("val_t", 1), ("relation_feat", 2)):
        np.save(tmp_path / f"{name}.npy", np.zeros((4, width), np.int64))
    taken, others = ([Path(path).stem for path in paths] for paths in ogb_files(str(tmp_path)))
    assert taken == ["entity_feat", "train_hrt"] and others == ["relation_feat", "val_hr", "val_t"]
    assert Reading("g").table_of(str(tmp_path / "entity_feat.npy")) == ("node_features", True)
    for name in ("val_hr", "val_t", "test-dev_hr"):
        with pytest.raises(UserError, match="column_stack"):
            Reading("g").table_of(str(tmp_path / f"{name}.npy"))


def test_relations_of_a_parquet_file_are_its_own(tmp_path: Path) -> None:
    pq.write_table(pa.table({"src": [1], "dst": [2], "says": ["likes"]}), tmp_path / "x.parquet")
    accepted, _ = read(tmp_path / "x.parquet", Reading("g", columns={"relation": "says"}))
    assert [(row["src"], row["relation"], row["dst"]) for row in accepted] == [(1, "likes", 2)]
