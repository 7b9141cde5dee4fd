"""Dense ids for nodes that have integer ids.

    dense id of a node = its rank among the nodes of its type            (of a later generation: nodes known + its rank
                                                                          among those that are new)

Ranks come from a range-partitioned sort: the distinct ids of a range are sorted in one task, the ranges before it add
their counts (a prefix sum over one number a range).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.features.graph_blocks import (
    BLOCK_DDL,
    NEW,
    NODES,
    Ranges,
    Rows,
    pack,
    quantiles,
    table_of,
    unpack,
)
from headrace.features.graph_edges import Edges, Sample, chunks, sides_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

_NODE_SCHEMA = pa.schema([("type", pa.int32()), ("id", pa.int64()), ("original", pa.int64())])


def id_ranges(edges: Edges, sampled: Sample, others: Mapping[str, int], part_edges: int) -> dict[str, Ranges]:
    """Ranges of original ids by node type, of about `part_edges` edges each.

    Args:
        edges: the edges.
        sampled: of them.
        others: node types with ids from elsewhere (features, labels), and how many.
        part_edges: edges that a task holds.
    """
    ranges: dict[str, Ranges] = {}
    seen = sides_of(sampled, edges)
    first = 0
    for name in sorted({*edges.node_types, *others}):
        typed = zip(edges.types, edges.counts, strict=True)
        ends = sum(count * (edge.source, edge.target).count(name) for edge, count in typed)
        parts = -(-max(ends // 2, others.get(name, 0)) // part_edges)
        bounds = quantiles(np.concatenate(seen[name]), parts) if name in seen else np.empty(0, np.int64)
        ranges[name] = Ranges(first, bounds.astype(np.int64))
        first += ranges[name].count
    return ranges


def node_blocks(
    edges: Edges, others: DataFrame | None, known: DataFrame | None, ranges: Mapping[str, Ranges]
) -> DataFrame:
    """Blocks of all nodes by range: what each part must know to renumber its edges, to be persisted.

    Args:
        edges: whose ends are nodes.
        others: node_type string, id bigint: nodes that features or labels name.
        known: node_type string, original bigint, id bigint: nodes that have their dense ids.
        ranges: by node type.
    """
    ends = [(ranges[edge.source], ranges[edge.target]) for edge in edges.types]
    blocks = edges.source.blocks(("src", "dst"), partial(_ends_to_blocks, ends))
    for frame, is_known in ((others, False), (known, True)):
        if frame is not None:
            blocks = blocks.unionAll(frame.mapInArrow(_ids_to_blocks(dict(ranges), is_known), BLOCK_DDL))
    return blocks.groupBy("part").applyInArrow(_distinct(_range_of(ranges)), BLOCK_DDL)


def _range_of(ranges: Mapping[str, Ranges]) -> dict[int, Ranges]:
    return {part: parts for parts in ranges.values() for part in range(parts.first, parts.first + parts.count)}


def _ends_to_blocks(ends: list[tuple[Ranges, Ranges]], number: int, *arrays: I64) -> Rows:
    sides = zip(arrays, ends[number], strict=True)
    return [row for ids, ranges in sides for row in _node_rows(_unique(ids), None, ranges)]


def _ids_to_blocks(
    ranges: dict[str, Ranges], known: bool
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for chunk in chunks(batches):
            names = chunk.column(0).combine_chunks().dictionary_encode()
            codes = names.indices.to_numpy()
            for code, name in enumerate(names.dictionary.to_pylist()):
                mask = codes == code
                ids = chunk.column(1).to_numpy()[mask]
                order = np.argsort(ids, kind="stable")
                dense = chunk.column(2).to_numpy()[mask][order] if known else None
                rows = _node_rows(ids[order] if known else np.unique(ids), dense, ranges[name])
                yield from table_of(rows).to_batches()

    return run


def _node_rows(ids: I64, dense: I64 | None, ranges: Ranges) -> Rows:
    """Ascending ids as blocks; an id with several parts goes to the first of them only."""
    rows: Rows = []
    done = 0
    for part, cut in ranges.slices(ids):
        mine = slice(max(cut.start, done), cut.stop)
        done = max(done, cut.stop)
        if mine.stop > mine.start:
            rows.append(pack(part, NEW, (ids[mine],)) if dense is None else pack(part, NODES, (ids[mine], dense[mine])))
    return rows


def _distinct(range_of: dict[int, Ranges]) -> Callable[[pa.Table], pa.Table]:
    """One range: its known nodes, and ids that are not among them, to every part that needs them."""

    def run(table: pa.Table) -> pa.Table:
        part = table.column("part")[0].as_py()
        found = unpack(table)
        rows: Rows = []
        fresh = _unique(found[NEW][0]) if NEW in found else np.empty(0, np.int64)
        if NODES in found:
            ids, dense = _ordered(*found[NODES][:2])
            rows += [pack(to, NODES, (ids[cut], dense[cut])) for to, cut in range_of[part].slices(ids)]
            fresh = fresh[~among(fresh, ids)]
        rank, home = np.arange(len(fresh)), np.array([part])
        cuts = range_of[part].slices(fresh)
        return table_of(rows + [pack(to, NEW, (fresh[cut], rank[cut], None, home)) for to, cut in cuts])

    return run


def _unique(ids: I64) -> I64:
    """np.unique without its copies: sorting dominates."""
    ordered = np.sort(ids)
    if len(ordered) < 2:
        return ordered
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


def _ordered(ids: I64, dense: I64) -> tuple[I64, I64]:
    order = np.argsort(ids, kind="stable")
    return ids[order], dense[order]


def among(values: I64, ordered: I64) -> npt.NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values


def offsets(
    blocks: DataFrame, ranges: Mapping[str, Ranges], known: Mapping[str, int]
) -> tuple[dict[int, int], dict[str, int]]:
    """The dense id of the first new node of each part, and the nodes of each type.

    Args:
        blocks: as `node_blocks` made them.
        ranges: by node type.
        known: nodes by type that have ids already; new ones come behind.
    """
    new = dict(_counts(blocks))
    starts, totals = {}, {}
    for name, parts in ranges.items():
        total = known.get(name, 0)
        for part in range(parts.first, parts.first + parts.count):
            starts[part] = total
            total += new.get(part, 0)
        totals[name] = total
    return starts, totals


def _counts(blocks: DataFrame) -> list[tuple[int, int]]:
    """New nodes by the part that ranked them; a number a part, whatever the graph."""
    rows = blocks.where(f"type = {NEW}").selectExpr("part", "place", "octet_length(a) DIV 8 AS nodes").collect()
    return [(row["part"], row["nodes"]) for row in rows if np.frombuffer(row["place"], np.int64)[0] == row["part"]]


def new_nodes(blocks: DataFrame, ranges: Mapping[str, Ranges], starts: Mapping[int, int]) -> DataFrame:
    """The new nodes: node_type string, id bigint (dense), original bigint."""
    from pyspark.sql import functions as F

    names = sorted(ranges)
    type_of = {part: number for number, name in enumerate(names) for part in _range_of({name: ranges[name]})}
    table = dict(starts)

    def run(key: tuple[pa.Scalar, ...], rows: pa.Table) -> pa.Table:
        part = key[0].as_py()
        mine = [(ids, rank) for home, ids, rank in _blocks_of(rows) if home == part]  # others look them up here
        ids, rank = mine[0] if mine else (np.empty(0, np.int64), np.empty(0, np.int64))
        types = np.full(len(ids), type_of[part], np.int32)
        return pa.Table.from_arrays([pa.array(types), pa.array(table[part] + rank), pa.array(ids)], schema=_NODE_SCHEMA)

    rows = blocks.where(f"type = {NEW}").groupBy("part").applyInArrow(run, "type int, id bigint, original bigint")
    array = F.array(*[F.lit(name) for name in names])
    return rows.select(F.element_at(array, F.col("type") + 1).alias("node_type"), "id", "original")


def _blocks_of(table: pa.Table) -> Iterator[tuple[int, I64, I64]]:
    """The blocks of nodes in a part: the part that ranked them (-1: dense ids), their ids, ranks or dense ids."""
    for type_, a, b, place in zip(*(table.column(name) for name in ("type", "a", "b", "place")), strict=True):
        if type_.as_py() in (NODES, NEW):
            home = int(np.frombuffer(place.as_buffer(), np.int64)[0]) if place.is_valid else -1
            yield home, np.frombuffer(a.as_buffer(), np.int64), np.frombuffer(b.as_buffer(), np.int64)


@dataclass(frozen=True)
class Nodes:
    """All nodes of a graph, where each part of its ids finds them.

    Args:
        blocks: as `node_blocks` made them, persisted.
        ranges: by node type.
        starts: dense id of the first new node of each part.
    """

    blocks: DataFrame
    ranges: dict[str, Ranges]
    starts: dict[int, int]


def map_of(table: pa.Table, starts: Mapping[int, int]) -> tuple[I64, I64]:
    """The nodes of a part, ascending, and their dense ids."""
    ids, dense = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for home, found, numbers in _blocks_of(table):
        ids.append(found)
        dense.append(numbers if home < 0 else numbers + starts[home])
    return _ordered(np.concatenate(ids), np.concatenate(dense))


def look_up(values: I64, ids: I64, dense: I64) -> I64:
    places = np.searchsorted(ids, values)
    assert len(ids) or not len(values)
    assert (ids[places] == values).all(), "an edge's end is not among the nodes"
    return dense[places]


def look_up_all(values: I64, others: Sequence[Any], ids: I64, dense: I64) -> tuple[I64, list[Any]]:
    """The same for many values, which come back sorted, and what stands beside them in that order.

    Half the time of `look_up`: values that are sorted walk through `ids` instead of jumping, and equal ones do it once.
    """
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
    found = np.repeat(look_up(ordered[starts], ids, dense), np.diff(starts, append=len(ordered)))
    return found, [None if other is None else other[order] for other in others]


def dense_sample(sampled: Sample, edges: Edges, nodes: Nodes) -> Sample:
    """The sampled edges by dense ids: the few ids that are wanted are looked up where the nodes are."""
    if not sampled:
        return {}
    wanted = {name: np.unique(np.concatenate(ids)) for name, ids in sides_of(sampled, edges).items()}
    by_part = {part: ids[cut] for name, ids in wanted.items() for part, cut in nodes.ranges[name].slices(ids)}
    starts = nodes.starts

    def run(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        ids, dense = map_of(table, starts)
        mine = by_part.get(key[0].as_py(), ids[:0])
        mine = mine[among(mine, ids)]
        columns = [table.column("part").slice(0, 1).take(pa.array(np.zeros(len(mine), np.int64)))]
        columns += [pa.array(mine), pa.array(look_up(mine, ids, dense))]
        return pa.table(dict(zip(("part", "original", "id"), columns, strict=True)))

    rows = nodes.blocks.groupBy("part").applyInArrow(run, "part int, original bigint, id bigint").toArrow()
    part, original, dense = (rows.column(n).to_numpy() for n in range(3))
    tables = {}
    for name in wanted:
        parts = nodes.ranges[name]
        mask = (part >= parts.first) & (part < parts.first + parts.count)
        ids, places = np.unique(original[mask], return_index=True)
        tables[name] = (ids, dense[mask][places])
    return {
        number: (look_up(src, *tables[edges.types[number].source]), look_up(dst, *tables[edges.types[number].target]))
        for number, (src, dst) in sampled.items()
    }
