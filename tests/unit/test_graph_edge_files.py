"""Edges read from data files of several types, chunks and shares, against rows read the plain way."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.catalog.log import DataFile
from headrace.features import graph_files
from headrace.features.csr import EdgeType
from headrace.features.graph_edges import Edges, _chosen, sample
from headrace.features.graph_files import TYPE, _counts, groups, typed, units_of

NAMES = [("a", "x", "a", "all"), ("a", "x", "b", "all"), ("b", "y", "a", "train"), ("b", "y", "a", "test")]


def write(path: Path, rows: list[tuple[tuple[str, ...], int, int, float | None]], group: int) -> DataFile:
    columns = {name: pa.array([row[0][place] for row in rows], pa.string()) for place, name in enumerate(TYPE)}
    columns |= {"key": pa.array(range(len(rows)), pa.int64())}
    columns |= {name: pa.array([row[1 + at] for row in rows], pa.int64()) for at, name in enumerate(("src", "dst"))}
    columns |= {"weight": pa.array([row[3] for row in rows], pa.float64())}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return DataFile(str(path), len(rows), {}, path.stat().st_size)


@pytest.mark.parametrize(("group", "chunk", "unit"), [(1000, 1 << 20, 1 << 20), (70, 30, 1 << 20), (25, 60, 1000)])
def test_every_edge_comes_once_with_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, chunk: int, unit: int
) -> None:
    monkeypatch.setattr(graph_files, "CHUNK_EDGES", chunk)
    monkeypatch.setattr(graph_files, "_UNIT_BYTES", unit)
    rng = random.Random(1)
    rows = [(rng.choice(NAMES), rng.randrange(9), rng.randrange(9), rng.choice([None, 2.5, -1.0])) for _ in range(400)]
    units = units_of([write(tmp_path / "edges.parquet", rows, group)])
    assert (len(units) > 1) == (unit == 1000)
    found: dict[int, Any] = {}
    for mine in units:
        for names, (src, dst, weight, place) in typed(mine, ("src", "dst", "weight", "place")):
            assert 0 < len(src) <= chunk
            weights = [None if np.isnan(number) else number for number in weight.tolist()]
            values = zip(src.tolist(), dst.tolist(), weights, strict=True)
            found |= {key: (names, *value) for key, value in zip(place.tolist(), values, strict=True)}
    assert [found[key] for key in range(len(rows))] == rows


@pytest.mark.parametrize(("weight", "weighted"), [(None, (2, 0)), (4.0, (3, 1))])
def test_edges_are_tallied_by_type(tmp_path: Path, weight: float | None, weighted: tuple[int, int]) -> None:
    rows = [(NAMES[0], 3, 3, weight), (NAMES[0], 3, 9, 1.0), (NAMES[1], 4, 4, weight), (NAMES[0], 1, 1, 2.0)]
    (unit,) = units_of([write(tmp_path / "edges.parquet", rows, 1000)])
    counts = {names: _counts(names, *arrays) for names, arrays in typed(unit, ("src", "dst", "weight"))}
    assert counts == {
        NAMES[0]: (3, 2, weighted[0], 3, 9),
        NAMES[1]: (1, 0, weighted[1], 4, 4),
    }  # the same id of two types is no loop


def test_a_file_without_edges(tmp_path: Path) -> None:
    (unit,) = units_of([write(tmp_path / "edges.parquet", [], 1000)])
    assert list(typed(unit, ("src", "dst"))) == []


@given(st.lists(st.integers(0, 5), max_size=40))
def test_groups_are_all_places_in_order(codes: list[int]) -> None:
    found = {code: places for code, places in groups(np.array(codes, np.int64))}
    assert {c: len(codes) if p is None else len(p) for c, p in found.items()} == Counter(codes)
    for code, places in found.items():
        assert [codes[place] for place in (range(len(codes)) if places is None else places)] == [code] * codes.count(
            code
        )
        assert places is None or places.tolist() == sorted(places.tolist())


def test_a_sample_is_chosen_by_the_edge_alone_with_its_copies() -> None:
    rng = np.random.default_rng(2)
    src, dst = rng.integers(0, 1 << 40, (2, 100_000))

    def chosen(size: int) -> list[tuple[int, ...]]:
        """In chunks of `size`, then every edge a second time."""
        chunks = [(3, [src[at : at + size], dst[at : at + size]]) for at in [*range(0, 100_000, size)] * 2]
        found = pa.Table.from_batches(list(_chosen(100, iter(chunks))))
        found = found.group_by(["type", "src", "dst"]).aggregate([("edges", "sum")])
        return sorted(zip(*(column.to_pylist() for column in found.columns), strict=True))

    found = chosen(100_000)
    assert 900 < len(found) < 1100 and {(row[0], row[3]) for row in found} == {(3, 2)}
    assert found == chosen(999)
    given = list(zip(src.tolist(), dst.tolist(), strict=True))
    assert {row[1:3] for row in found} < set(given)
    halves = [sum(edge in {row[1:3] for row in found} for edge in half) for half in (given[::2], given[1::2])]
    assert min(halves) > 400


@pytest.mark.parametrize("chunk", [64, 1000, 100_000])
def test_a_sample_does_not_depend_on_chunks_however_often_an_edge_stands_there(chunk: int) -> None:
    """One cut short in each chunk, before copies are put together, would: shards would begin elsewhere."""
    ids = np.random.default_rng(1).integers(0, 200, (2, 20_000))
    often = np.concatenate([ids, np.repeat(ids[:, :50], 300, axis=1)], axis=1)[
        :, np.random.default_rng(0).permutation(35_000)
    ]
    edges = Edges(Listed(often, chunk), (EdgeType(),), (35_000,), (0,), False)  # type: ignore[arg-type]
    src, dst, count = sample(edges, 20)[0]
    every = Counter(zip(*often.tolist(), strict=True))
    assert count.tolist() == [min(every[edge], 256) for edge in zip(src.tolist(), dst.tolist(), strict=True)]
    assert max(count) == 256 and len(set(zip(src.tolist(), dst.tolist(), strict=True))) == len(src)
    again = sample(Edges(Listed(often[:, ::-1], 777), (EdgeType(),), (35_000,), (0,), False), 20)[0]  # type: ignore[arg-type]
    assert [column.tolist() for column in again] == [src.tolist(), dst.tolist(), count.tolist()]


class Listed:
    """Edges in memory, in chunks, as tasks of Spark would get them."""

    def __init__(self, ids: Any, chunk: int) -> None:
        self.chunks = [(0, [*ids[:, at : at + chunk]]) for at in range(0, ids.shape[1], chunk)]

    def each(self, columns: Any, act: Any, ddl: str) -> Any:
        batches = [batch for chunk in self.chunks for batch in act(iter([chunk]))]
        return SimpleNamespace(toArrow=lambda: pa.Table.from_batches(batches))
