"""Open an adjacency of gold/graph_csr without Spark: a shard at a time, or the whole as one CSR.

    neighbours of node first_node + i in a shard: indices[indptr[i]:indptr[i + 1]]

`open_csr` reads Delta's log, the manifest and the small columns of the shards; arrays are read when asked for, a shard
a row group, and checked against the CRC they were written with.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.catalog import storage
from headrace.catalog.delta import exists, files_at
from headrace.catalog.spec import load
from headrace.errors import UserError

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

_SMALL = ("first_node", "num_nodes", "num_edges", "shard", "piece", "pieces", "crc32", "key_sum")
_NAMES = ("source_type", "relation", "target_type", "split", "direction")
_ARRAYS = ("indptr", "indices", "weights")
ALL_RELATIONS = "*"
"""The relation of an adjacency over all relations between two node types."""


@dataclass(frozen=True, order=True)
class EdgeType:
    """Which edges: from nodes of one type, by a relation, to nodes of a type; `split` where edges are split."""

    source: str = "node"
    relation: str = "edge"
    target: str = "node"
    split: str = "all"

    def __str__(self) -> str:
        split = "" if self.split == "all" else f" ({self.split})"
        return f"{self.source}-{self.relation}-{self.target}{split}"


@dataclass(frozen=True)
class ShardInfo:
    """Where a shard lies and what it covers; `first_edge` is the place of its first edge in the adjacency."""

    path: str
    row_group: int
    row: int
    first_node: int
    num_nodes: int
    first_edge: int
    num_edges: int
    shard: int
    piece: int
    pieces: int
    crc32: int
    key_sum: int


@dataclass(frozen=True)
class Shard:
    """One shard's arrays: indptr [num_nodes + 1] from 0, indices [num_edges], weights [num_edges] or None.

    relations [num_edges]: numbers into `CsrTable.relations` where those are joined, else None.
    """

    first_node: int
    indptr: I64
    indices: I64
    weights: F64 | None
    relations: I32 | None = None


@dataclass(frozen=True)
class Csr:
    """A whole adjacency: indptr [num_nodes + 1], indices [num_edges] ascending within a node, weights or None.

    relations as in `Shard`; neighbours of a node that are equal stand in their order.
    """

    indptr: I64
    indices: I64
    weights: F64 | None
    relations: I32 | None = None


@dataclass(frozen=True)
class CsrTable:
    """An adjacency at a version: picklable, arrays stay on disk.

    Args:
        graph: its name.
        edge_type: which edges.
        direction: out (rows are sources) or in (rows are targets).
        num_nodes: rows of the matrix.
        num_targets: columns of the matrix.
        num_edges: edges stored.
        version: of gold/graph_csr.
        shards: in order.
        manifest: the manifest's row.
    """

    graph: str
    edge_type: EdgeType
    direction: str
    num_nodes: int
    num_targets: int
    num_edges: int
    version: int
    shards: tuple[ShardInfo, ...]
    manifest: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def weighted(self) -> bool:
        """Have the edges weights?"""
        return bool(self.manifest.get("dtype") == "float64")

    @property
    def relations(self) -> tuple[str, ...]:
        """Names by number where this is an adjacency over all relations, else empty."""
        return tuple(self.manifest.get("relations") or ())

    def shard(self, number: int) -> Shard:
        """Read one shard and check it.

        Raises:
            UserError: the file is gone, or holds other bytes than were written.
        """
        info = self.shards[number]
        store, _ = storage.locate(info.path)
        names = [*_ARRAYS, *(["relations"] if self.relations else [])]
        try:
            with store.open(info.path) as stream:
                group = pq.ParquetFile(stream).read_row_group(info.row_group, columns=names)
        except FileNotFoundError as error:
            raise UserError(
                f"{info.path}: a file of gold/graph_csr@{self.version} is gone", "open a newer version"
            ) from error
        indptr, indices, weights, *more = (_cell(group.column(name), info.row) for name in names)
        assert indptr is not None and indices is not None
        if checksum(indptr, indices, weights, *more) != info.crc32:
            raise UserError(f"{info.path}: shard {info.shard} is not what was written", "make the graph again")
        return Shard(info.first_node, indptr, indices, weights, *more)

    def walk(self) -> Iterator[Shard]:
        """All shards in order, one in memory at a time."""
        for number in range(len(self.shards)):
            yield self.shard(number)

    def whole(self) -> Csr:
        """The adjacency in memory: 8 (num_nodes + 1) + 8 num_edges bytes (8 more with weights, 4 with relations)."""
        indptr = np.zeros(self.num_nodes + 1, np.int64)
        indices = np.empty(self.num_edges, np.int64)
        weights = np.empty(self.num_edges, np.float64) if self.weighted else None
        relations = np.empty(self.num_edges, np.int32) if self.relations else None
        for info, shard in zip(self.shards, self.walk(), strict=True):
            edges = slice(info.first_edge, info.first_edge + info.num_edges)
            indices[edges] = shard.indices
            if weights is not None and shard.weights is not None:
                weights[edges] = shard.weights
            if relations is not None and shard.relations is not None:
                relations[edges] = shard.relations
            indptr[info.first_node + 1 : info.first_node + info.num_nodes + 1] = info.first_edge + shard.indptr[1:]
        return Csr(indptr, indices, weights, relations)

    def shards_of(self, node: int) -> list[int]:
        """The shards that hold a node's neighbours: one, or the pieces of a large node, in order."""
        firsts = np.array([info.first_node for info in self.shards])
        last = int(np.searchsorted(firsts, node, side="right")) - 1
        if not 0 <= node < self.num_nodes or last < 0:
            raise ValueError(f"node {node} is not in [0, {self.num_nodes})")
        return list(range(last - self.shards[last].piece, last + 1))


def open_csr(
    lake: str | Path,
    graph: str,
    edge_type: EdgeType = EdgeType(),
    direction: str = "out",
    version: int | None = None,
) -> CsrTable:
    """Find an adjacency.

    Args:
        lake: folder of the tables.
        graph: the graph's name.
        edge_type: which edges.
        direction: out or in.
        version: of gold/graph_manifest; None: the newest.

    Raises:
        UserError: no such graph, edge type or version (those that are there are named).
    """
    rows = [row for row in manifest(lake, graph, version) if row["part"] == "csr"]
    wanted = (edge_type.source, edge_type.relation, edge_type.target, edge_type.split, direction)
    found = [row for row in rows if tuple(row[name] for name in _NAMES) == wanted]
    if not found:
        have = sorted({f"{_edge_type(row)} {row['direction']}" for row in rows})
        more = f" and {len(have) - 20} more" if len(have) > 20 else ""
        raise UserError(
            f"graph {graph!r} has no edges {edge_type} {direction}", f"there are: {', '.join(have[:20])}{more}"
        )
    return open_row(lake, graph, found[0])


def open_row(lake: str | Path, graph: str, row: dict[str, Any]) -> CsrTable:
    """The adjacency that a row of the manifest speaks of.

    Raises:
        UserError: the table does not hold what the manifest says.
    """
    shards = _shards(lake, graph, row["version"], tuple(row[name] for name in _NAMES))
    _check(row, shards)
    table = (row["nodes"], row["targets"], row["edges"], row["version"])
    return CsrTable(graph, _edge_type(row), row["direction"], *table, tuple(shards), row)


def manifest(lake: str | Path, graph: str, version: int | None = None) -> list[dict[str, Any]]:
    """The manifest's rows of a graph, `counts` and `options` as objects.

    Raises:
        UserError: no such graph or version.
    """
    spec = load("gold/graph_manifest")
    if not exists(spec.path(lake)):
        raise UserError(f"there is no graph in {lake}", f"headrace featurize-graph --lake {lake} --graph {graph}")
    rows: list[dict[str, Any]] = []
    for file in files_at(spec, lake, version, {"graph": graph}):
        store, _ = storage.locate(file.path)
        with store.open(file.path) as stream:
            rows += pq.ParquetFile(stream).read().to_pylist()
    if not rows:
        raise UserError(
            f"there is no graph {graph!r} in {lake}", f"headrace featurize-graph --lake {lake} --graph {graph}"
        )
    return [row | {"counts": json.loads(row["counts"]), "options": json.loads(row["options"])} for row in rows]


def checksum(indptr: I64, indices: I64, weights: F64 | None, relations: I32 | None = None) -> int:
    """CRC-32 of the arrays' little-endian bytes, one after the other."""
    crc = zlib.crc32(np.ascontiguousarray(indptr, "<i8").data)
    crc = zlib.crc32(np.ascontiguousarray(indices, "<i8").data, crc)
    crc = crc if weights is None else zlib.crc32(np.ascontiguousarray(weights, "<f8").data, crc)
    return crc if relations is None else zlib.crc32(np.ascontiguousarray(relations, "<i4").data, crc)


def _edge_type(row: dict[str, Any]) -> EdgeType:
    return EdgeType(*(row[name] for name in _NAMES[:4]))


def _shards(lake: str | Path, graph: str, version: int, wanted: tuple[str, ...]) -> list[ShardInfo]:
    """Their small columns, in order."""
    found: list[dict[str, Any]] = []
    for file in files_at(load("gold/graph_csr"), lake, version, {"graph": graph}):
        store, _ = storage.locate(file.path)
        with store.open(file.path) as stream:
            reader = pq.ParquetFile(stream)
            for group in range(reader.num_row_groups):
                rows = reader.read_row_group(group, columns=[*_SMALL, *_NAMES]).to_pylist()
                found += [
                    {name: row[name] for name in _SMALL} | {"path": file.path, "row_group": group, "row": place}
                    for place, row in enumerate(rows)
                    if tuple(row[name] for name in _NAMES) == wanted
                ]
    first_edge, shards = 0, []
    for row in sorted(found, key=lambda row: int(row["shard"])):
        shards.append(ShardInfo(**row, first_edge=first_edge))
        first_edge += row["num_edges"]
    return shards


def _check(row: dict[str, Any], shards: list[ShardInfo]) -> None:
    """Do the shards make up what the manifest promises?"""
    edges = sum(shard.num_edges for shard in shards)
    nodes = sum(shard.num_nodes for shard in shards if shard.piece == 0)
    key_sum = sum(shard.key_sum for shard in shards) % (1 << 64)
    if (edges, nodes, len(shards), str(key_sum)) != (row["edges"], row["nodes"], row["shards"], row["fingerprint"]):
        raise UserError(
            f"gold/graph_csr@{row['version']} does not hold what the manifest of {_edge_type(row)} says",
            "headrace featurize-graph makes it again",
        )


def _cell(column: pa.ChunkedArray, row: int) -> Any:
    """One row's list as numpy, without a copy where Arrow has it in one piece; None for null."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    cell = array.slice(row, 1)
    return None if cell.null_count else cell.flatten().to_numpy(zero_copy_only=False)
